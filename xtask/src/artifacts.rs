//! Builds the eBPF programs, the agent and the proxy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::repository::{find_command, root, target};
use crate::setup::has_debian_toolchain;
use crate::steps::Steps;

/// Debian's rustc; rustup's comes first on most search paths.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// Names the folder in which the test cluster finds the agent, the proxy and the pods' tool.
pub const BINARIES: &str = "WEFT_BIN_DIR";
const BPF_TARGET: &str = "bpfel-unknown-none";

/// What builds the eBPF programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BpfToolchain {
    /// Debian's rustc-web with its prebuilt core.
    Debian,
    /// rustup's nightly, which builds core from rust-src.
    Nightly,
}

impl BpfToolchain {
    /// Debian's if it is there, else nightly if that has rust-src. `WEFT_BPF_TOOLCHAIN=nightly`
    /// asks for the latter.
    pub fn find() -> Option<Self> {
        let nightly_first = std::env::var_os("WEFT_BPF_TOOLCHAIN").is_some_and(|v| v == "nightly");
        if !nightly_first && has_debian_toolchain() {
            return Some(Self::Debian);
        }
        let output =
            Command::new("rustc").args(["+nightly", "--print", "sysroot"]).output().ok()?;
        let sysroot = String::from_utf8(output.stdout).ok()?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        (output.status.success() && core.exists()).then_some(Self::Nightly)
    }

    /// As shown to the user.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc with its prebuilt core",
            Self::Nightly => "rustup's nightly with -Z build-std=core",
        }
    }

    /// `cargo SUBCOMMAND` on the eBPF workspace.
    pub fn cargo(self, subcommand: &str) -> Result<Command> {
        let linker = find_command("bpf-linker")
            .context("bpf-linker is not installed: run `cargo xtask setup`")?;
        let mut command = match self {
            Self::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                command.arg(subcommand).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                // Cargo looks for its subcommands, and clippy for its driver, on the path.
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("/usr/bin:{path}"));
                command
            }
            Self::Nightly => {
                let mut command = Command::new("cargo");
                command.args(["+nightly", subcommand, "-Z", "build-std=core"]);
                command
            }
        };
        let flags = format!("-C linker={} -C debuginfo=2 -C link-arg=--btf", linker.display());
        command
            .current_dir(root().join("ebpf"))
            .args(["--release", "--target", BPF_TARGET])
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", root().join("ebpf/target"))
            // Set by the cargo that runs us, for its own toolchain.
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        Ok(command)
    }
}

/// What a mesh on this machine needs.
pub const PROGRAMS: [&str; 4] = ["weft", "weft-proxy", "pod-tool", "runc-without-controllers"];

/// Builds everything, in release mode.
///
/// # Errors
/// A toolchain that is not there, or a build that fails.
pub fn build(steps: &mut Steps) -> Result<()> {
    build_programs(steps)?;
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--locked", "--package", "weft-agent"]);
    command.args(["--package", "weft-proxy", "--package", "weft-tests", "--bins"]);
    steps.run("build the agent, the proxy and the pods' tool", &mut command)?;
    for name in PROGRAMS {
        let file = target().join("release").join(name);
        ensure!(file.is_file(), "the build did not make {}", file.display());
    }
    Ok(())
}

/// Where the binaries are.
pub fn folder() -> PathBuf {
    std::env::var_os(BINARIES).map_or_else(|| target().join("release"), PathBuf::from)
}

/// Builds the eBPF programs; the agent's build takes them from `ebpf/target`.
pub fn build_programs(steps: &mut Steps) -> Result<()> {
    let toolchain = BpfToolchain::find()
        .context("no compiler for eBPF is installed: run `cargo xtask setup` as root")?;
    let title = format!("build the eBPF programs ({})", toolchain.describe());
    steps.run(&title, toolchain.cargo("build")?.arg("--locked")).map(drop)
}
