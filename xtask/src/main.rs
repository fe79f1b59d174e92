//! Build, test, demo and bench: what a Makefile would hold.
#![forbid(unsafe_code)]

mod artifacts;
mod bench;
mod checks;
mod demo;
mod image;
mod kubernetes;
mod nginx;
mod repository;
mod scale;
mod setup;
mod steps;
mod vm;

use std::env;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::setup::Purpose;
use crate::steps::Steps;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Arguments {
    /// Level of the logs, as `info` or `xtask=debug`.
    #[arg(long, global = true, env = "WEFT_LOG", default_value = "warn")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building, testing and measuring need, and say what and why (root).
    Setup,
    /// Build the eBPF programs, the agent and the proxy.
    Build,
    /// Write the definitions of Weft's kinds into the chart.
    Crds,
    /// Check the format, lint, and run the unit and end-to-end tests (root).
    Test(checks::Arguments),
    /// Build Kubernetes from its Go modules, for the tests and the demo (some minutes, once).
    Kubernetes,
    /// Write Weft's container image into an archive, without a container engine.
    Image(image::Arguments),
    /// Bring up the bookshop on a mesh of two nodes, and check what its traffic does (root).
    Demo(demo::Arguments),
    /// Measure a mesh against no mesh on this machine (root).
    Bench(bench::Arguments),
    /// Measure what many objects in an API server cost the agents (root; builds Kubernetes).
    Scale(scale::Arguments),
    /// Run the tests that face the kernel on other kernels, in QEMU (root to install it).
    VmTest {
        /// Only on these kernels, as `6.1`.
        kernels: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&arguments.log)?)
        .with_writer(std::io::stderr)
        .init();
    env::set_current_dir(repository::root())?;
    let mut steps = Steps::new();
    match arguments.command {
        Command::Setup => setup::run(&mut steps, &Purpose::ALL)?,
        Command::Build => {
            setup::run(&mut steps, &[Purpose::Build])?;
            artifacts::build(&mut steps)?;
        }
        Command::Crds => {
            let mut weft = std::process::Command::new("cargo");
            weft.args(["run", "--package", "weft-agent", "--bin", "weft", "--"]);
            weft.args(["crds", "--chart", "charts/weft"]);
            steps.run("definitions of the chart", &mut weft)?;
        }
        Command::Kubernetes => kubernetes::build(&mut steps)?,
        Command::Image(arguments) => {
            setup::run(&mut steps, &[Purpose::Build])?;
            image::run(&mut steps, &arguments)?;
        }
        Command::Test(arguments) => checks::run(&mut steps, &arguments)?,
        Command::Demo(arguments) => {
            with_artifacts(&mut steps, arguments.needs_artifacts(), &[Purpose::Run])?;
            return demo::run(&mut steps, arguments);
        }
        Command::Bench(arguments) => {
            with_artifacts(&mut steps, true, &[Purpose::Run, Purpose::Measure])?;
            bench::run(&mut steps, &arguments)?;
        }
        Command::Scale(arguments) => {
            with_artifacts(&mut steps, true, &[Purpose::Run])?;
            return scale::run(&mut steps, &arguments);
        }
        Command::VmTest { kernels } => {
            with_artifacts(&mut steps, true, &[Purpose::Run, Purpose::Vm])?;
            vm::run(&mut steps, &kernels)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs and builds what a mesh on this machine needs, and starts over with the test cluster
/// told where to find it. A process that has been told comes here again, and goes on.
fn with_artifacts(steps: &mut Steps, build: bool, purposes: &[Purpose]) -> Result<()> {
    if env::var_os(artifacts::BINARIES).is_some() {
        return Ok(());
    }
    if build {
        let purposes: Vec<_> = [Purpose::Build].into_iter().chain(purposes.to_vec()).collect();
        setup::run(steps, &purposes)?;
        artifacts::build(steps)?;
    }
    let program = env::current_exe().context("xtask's own executable")?;
    let mut again = std::process::Command::new(program);
    again.args(env::args_os().skip(1)).env(artifacts::BINARIES, artifacts::folder());
    Err(again.exec()).context("cannot start over")
}
