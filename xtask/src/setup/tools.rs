//! Tools that cargo and rustup install.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::has_debian_toolchain;
use crate::artifacts::BpfToolchain;
use crate::repository::find_command;
use crate::steps::Steps;

/// The version that the programs are built and tested with.
const BPF_LINKER: &str = "0.13.0";
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

/// Links the eBPF programs; it must know at least the LLVM of the compiler.
pub fn install_bpf_linker(steps: &mut Steps) -> Result<()> {
    if BpfToolchain::find().is_none() {
        install_nightly(steps)?;
    }
    if find_command("bpf-linker").is_some() {
        return Ok(());
    }
    steps.say(&format!("bpf-linker {BPF_LINKER}: links the eBPF programs (about a minute)"));
    let mut command = Command::new("cargo");
    command.args(["install", "bpf-linker", "--version", BPF_LINKER]);
    if has_debian_toolchain() && Path::new(DEBIAN_LLVM).exists() {
        // Without LLVM_PREFIX it takes an older llvm-config from the path and fails to link.
        command
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM)
            .env("LLVM_PREFIX", DEBIAN_LLVM);
    }
    steps.run("cargo install bpf-linker", &mut command).map(drop)
}

/// The way of other systems: rustup's nightly, which builds core from source.
fn install_nightly(steps: &mut Steps) -> Result<()> {
    steps.say("rust-src of rustup's nightly: to build core for eBPF");
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", "nightly", "--component", "rust-src"]);
    command.args(["--profile", "minimal"]);
    steps
        .run("rustup toolchain install nightly", &mut command)
        .map(drop)
        .context("neither Debian's rustc-web nor rustup's nightly with rust-src is to be had")
}

/// clippy and rustfmt of the toolchain that builds the rest.
pub fn install_components(steps: &mut Steps) -> Result<()> {
    if find_command("cargo-clippy").is_some() && find_command("cargo-fmt").is_some() {
        return Ok(());
    }
    steps.say("clippy and rustfmt: lints and the format check");
    let mut command = Command::new("rustup");
    command.args(["component", "add", "clippy", "rustfmt"]);
    steps.run("rustup component add", &mut command).map(drop)
}

/// Checks licences and sources of the dependencies. `cargo xtask test` does without, and says
/// so, where it cannot be installed.
pub fn install_cargo_deny(steps: &mut Steps) -> Result<()> {
    if find_command("cargo-deny").is_some() {
        return Ok(());
    }
    steps.say("cargo-deny: licences, sources and advisories of the dependencies (some minutes)");
    let mut command = Command::new("cargo");
    command.args(["install", "cargo-deny", "--locked"]);
    if let Err(error) = steps.run("cargo install cargo-deny", &mut command) {
        steps.say(&format!("cargo-deny is not installed, so its checks are left out: {error:#}"));
    }
    Ok(())
}
