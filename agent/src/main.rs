//! The `weft` command.

use std::process::ExitCode;

use clap::Parser;
use weft_agent::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
