//! The `weft` command line.

mod agent;
mod check;
mod client;
mod duration;
mod explain;
mod log;
mod observe;
mod output;
mod status;
mod uninstall;
mod validate;

#[cfg(test)]
mod tests;

use std::io;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use agent::{Acceleration, AgentArgs, Enroll, MeshArgs, SameNode, UnknownPods};
pub use log::{LogArgs, LogFormat};
pub use output::{CompactFlows, Output, Paint};

/// The command did what it was asked, and something is wrong with what it looked at.
const EXIT_FOUND_WRONG: u8 = 1;
/// The command could not do what it was asked.
const EXIT_FAILED: u8 = 2;

/// A service mesh that lives in the node, not in the pod.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node agent
    Agent(Box<AgentArgs>),
    /// Watch what flows, and what is denied and why
    Observe(observe::ObserveArgs),
    /// Show what is in force on this node, and what is not
    Status(status::StatusArgs),
    /// Ask about policy
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Check manifests, without an agent
    Validate(validate::ValidateArgs),
    /// Check whether this machine can run Weft, and who else sits on its hooks
    Check(check::CheckArgs),
    /// Remove every program, link and map of Weft from this node's kernel
    Uninstall(uninstall::UninstallArgs),
    /// Print the version
    Version(VersionArgs),
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Say whether a connection is allowed, and which line of which manifest decides it
    Explain(explain::ExplainArgs),
}

#[derive(Debug, Args)]
struct VersionArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: output::TableOrJson,
}

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        let default_level = match self.command {
            Command::Agent(_) => "info",
            _ => "warn",
        };
        let done = self.log.start(default_level).and_then(|()| match self.command {
            Command::Agent(args) => agent::run(*args),
            Command::Observe(args) => observe::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Policy(PolicyCommand::Explain(args)) => explain::run(&args),
            Command::Validate(args) => validate::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Uninstall(args) => uninstall::run(&args),
            Command::Version(args) => version(&args),
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "weft", &mut io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        });
        match done {
            Ok(code) => code,
            Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("weft: {}", sentence(&error));
                ExitCode::from(EXIT_FAILED)
            }
        }
    }
}

/// An error with its causes, as far as they are not in its words already.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Whoever read our output (`head`) has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn version(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let layout = weft_common::LAYOUT_VERSION;
    match args.output {
        output::TableOrJson::Table => {
            output::print(format_args!("weft {version} (map layout {layout})"))?;
        }
        output::TableOrJson::Json => {
            output::print(serde_json::json!({ "version": version, "layout": layout }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
