//! Measures agents on a real API server with many objects.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::steps::Steps;
use crate::{artifacts, kubernetes};

/// `cargo xtask scale`
#[derive(Args)]
pub struct Arguments {
    /// `policies` or `services`, and how much of everything; `--help` after either says more.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    what: Vec<OsString>,
}

/// Builds etcd and the API server, and runs the measurement on the agent's release build.
///
/// # Errors
/// Something cannot be built.
pub fn run(steps: &mut Steps, arguments: &Arguments) -> Result<ExitCode> {
    artifacts::build(steps)?;
    kubernetes::build_control_plane(steps)?;
    let mut build = Command::new("cargo");
    let example = ["--package", "weft-tests", "--features", "client", "--example", "scale"];
    steps.run("build the measurement", build.arg("build").args(example))?;
    let mut measure = Command::new("cargo");
    measure.args(["run", "--quiet"]).args(example).arg("--").args(&arguments.what);
    measure.env(artifacts::BINARIES, artifacts::folder());
    let status = measure.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
