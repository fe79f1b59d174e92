//! Builds Kubernetes: each program from its Go module, once.

use std::fs;
use std::path::Path;
use std::process::{self, Command};

use anyhow::{Context, Result, ensure};
use weft_tests::kubernetes::{GO_MODULES, GoModule};

use crate::setup::{self, Go, Purpose};
use crate::steps::Steps;

/// Go names a program after the last part of its package's path, versions left out; this one
/// is known by another name.
const RENAMED: [(&str, &str); 1] = [("server", "etcd")];

/// Builds what is not there; quick, and silent, when all is.
///
/// # Errors
/// No Go can be had, a module cannot be fetched, or its build fails.
pub fn build(steps: &mut Steps) -> Result<()> {
    build_all(steps, missing(&GO_MODULES)?)
}

/// Builds the control plane alone, if it is not there.
///
/// # Errors
/// As [`build`].
pub fn build_control_plane(steps: &mut Steps) -> Result<()> {
    let [control_plane, ..] = GO_MODULES;
    build_all(steps, missing(&[control_plane])?)
}

fn build_all(steps: &mut Steps, missing: Vec<GoModule>) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    setup::run(steps, &[Purpose::Build, Purpose::Kubernetes])?;
    let go = Go::find(steps)?;
    steps.say("Kubernetes is built from its Go modules, once for all clones (10 min on 2 cores):");
    for module in missing {
        build_module(steps, &go, &module)?;
    }
    Ok(())
}

/// Whether there is nothing left to build.
///
/// # Errors
/// A module cannot be read.
pub fn is_built() -> Result<bool> {
    Ok(missing(&GO_MODULES)?.is_empty())
}

fn missing(modules: &[GoModule]) -> Result<Vec<GoModule>> {
    let mut missing = Vec::new();
    for module in modules {
        if !module.is_built()? {
            missing.push(*module);
        }
    }
    Ok(missing)
}

fn build_module(steps: &mut Steps, go: &Go, module: &GoModule) -> Result<()> {
    let directory = module.directory()?;
    let cache = directory.parent().context("a cache directory has a parent")?;
    fs::create_dir_all(cache).with_context(|| cache.display().to_string())?;
    // Another build of the same may run; a directory that has its final name is complete.
    let partial = cache.join(format!("{}.{}", module.name, process::id()));
    let title = format!("build {} ({})", module.name, module.programs.join(", "));
    let mut command = go.command();
    command
        .current_dir(module.source())
        .env("CGO_ENABLED", if module.cgo { "1" } else { "0" })
        .args(["build", "-v", "-mod=readonly", "-buildvcs=false"])
        .args(module.arguments)
        .arg("-o")
        .arg(&partial)
        .arg("tool");
    // Go takes a path without a slash at its end for a file, unless it is a directory.
    fs::create_dir_all(&partial)?;
    let built = steps.run(&title, &mut command).and_then(|_| finish(module, &partial, &directory));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())?;
    }
    built
}

fn finish(module: &GoModule, partial: &Path, directory: &Path) -> Result<()> {
    for (built, name) in RENAMED {
        if partial.join(built).exists() {
            fs::rename(partial.join(built), partial.join(name))?;
        }
    }
    for program in module.programs {
        let file = partial.join(program);
        ensure!(file.is_file(), "go build did not make {}", file.display());
    }
    if !module.is_built()? {
        fs::rename(partial, directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(())
}

/// Runs a command to its end, and returns what it wrote.
///
/// # Errors
/// It cannot be run, or fails: what it said is the error.
pub fn read(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
