//! Installs what building, testing and measuring need.

mod go;
mod packages;
mod tools;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

pub use self::go::Go;
pub use self::packages::Purpose;
use self::packages::{PACKAGES, Package};
use crate::artifacts::{BpfToolchain, DEBIAN_RUSTC};
use crate::repository;
use crate::steps::Steps;

/// Installs what is missing for `purposes`; quick, and silent, when nothing is.
///
/// # Errors
/// Not root, no apt-get, or an installation that fails: each says what to do by hand.
pub fn run(steps: &mut Steps, purposes: &[Purpose]) -> Result<()> {
    install_packages(steps, purposes)?;
    if purposes.contains(&Purpose::Build) {
        tools::install_bpf_linker(steps)?;
    }
    if purposes.contains(&Purpose::Check) {
        tools::install_components(steps)?;
        tools::install_cargo_deny(steps)?;
    }
    Ok(())
}

fn install_packages(steps: &mut Steps, purposes: &[Purpose]) -> Result<()> {
    let missing = missing_packages(purposes);
    if missing.is_empty() {
        return Ok(());
    }
    steps.say("Packages to install:");
    for package in &missing {
        steps.say(&format!("  {:28} {}", package.name, package.why));
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if repository::find_command("apt-get").is_none() {
        bail!(
            "there is no apt-get here: install what these Debian packages hold ({}) by your \
             system's own means",
            names.join(" ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("installing packages needs root: run `cargo xtask setup` as root once");
    }
    if !lists_present() {
        update_lists(steps)?;
    }
    let _no_services = NoServices::hold()?;
    if install(steps, &names).is_err() {
        // Lists that are there may be older than what the mirrors still hold.
        update_lists(steps)?;
        install(steps, &names)?;
    }
    Ok(())
}

fn update_lists(steps: &mut Steps) -> Result<()> {
    steps.run("apt-get update", apt_get().arg("update")).map(drop)
}

fn install(steps: &mut Steps, names: &[&str]) -> Result<()> {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]).args(names);
    steps.run("apt-get install", &mut command).map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing_packages(purposes: &[Purpose]) -> Vec<&'static Package> {
    let installed = installed_packages();
    let nightly = BpfToolchain::find().is_some_and(|found| found == BpfToolchain::Nightly);
    PACKAGES
        .iter()
        .filter(|package| purposes.contains(&package.purpose))
        // Who builds the eBPF programs with rustup's nightly does not need Debian's compiler.
        .filter(|package| !(nightly && package.debian_toolchain))
        .filter(|package| match &installed {
            Some(installed) => !installed.contains(package.name),
            None => !package.files.iter().all(|file| is_there(file)),
        })
        .collect()
}

/// What dpkg has installed; none on systems without it.
fn installed_packages() -> Option<std::collections::HashSet<String>> {
    let status = fs::read_to_string("/var/lib/dpkg/status").ok()?;
    let mut installed = std::collections::HashSet::new();
    let mut name = "";
    for line in status.lines() {
        if let Some(value) = line.strip_prefix("Package: ") {
            name = value;
        } else if line == "Status: install ok installed" || line == "Status: hold ok installed" {
            installed.insert(name.to_owned());
        }
    }
    Some(installed)
}

fn is_there(file: &str) -> bool {
    if file.starts_with('/') {
        Path::new(file).exists()
    } else {
        repository::find_command(file).is_some()
    }
}

fn lists_present() -> bool {
    let Ok(folder) = fs::read_dir("/var/lib/apt/lists") else { return false };
    folder.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Keeps packages from starting services while they are installed: nginx would take port 80.
struct NoServices {
    ours: bool,
}

const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn hold() -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(SERVICE_POLICY);
        match file {
            Ok(mut file) => {
                std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")?;
                Ok(Self { ours: true })
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).context(SERVICE_POLICY),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            tracing::warn!(%error, "{SERVICE_POLICY} stays; remove it, or no service will start");
        }
    }
}

/// Whether Debian's compiler for eBPF is there.
pub fn has_debian_toolchain() -> bool {
    Path::new(DEBIAN_RUSTC).exists() && Path::new("/usr/lib/rustlib/bpfel-unknown-none").exists()
}
