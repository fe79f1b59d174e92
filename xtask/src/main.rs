//! Build, test, demo and bench: what a Makefile would hold.
#![forbid(unsafe_code)]

mod artifacts;
mod checks;
mod repository;
mod setup;
mod steps;
mod vm;

use anyhow::Result;
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
    /// Check the format, lint, and run the unit and end-to-end tests (root).
    Test {
        /// Leave out the end-to-end tests.
        #[arg(long)]
        no_end_to_end: bool,
    },
    /// Run the tests that face the kernel on other kernels, in QEMU (root to install it).
    VmTest {
        /// Only on these kernels, as `6.1`.
        kernels: Vec<String>,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(&arguments.log)?)
        .with_writer(std::io::stderr)
        .init();
    std::env::set_current_dir(repository::root())?;
    let mut steps = Steps::new();
    match arguments.command {
        Command::Setup => setup::run(&mut steps, &Purpose::ALL),
        Command::Build => {
            setup::run(&mut steps, &[Purpose::Build])?;
            artifacts::build(&mut steps).map(drop)
        }
        Command::Test { no_end_to_end } => checks::run(&mut steps, no_end_to_end),
        Command::VmTest { kernels } => vm::run(&mut steps, &kernels),
    }
}
