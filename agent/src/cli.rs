//! The `weft` command line.

mod agent;
mod analyze;
mod bug_report;
mod ca;
mod check;
mod client;
mod cluster;
mod crds;
mod duration;
mod enroll;
mod explain;
mod helm;
mod install;
mod log;
mod mount_bpf;
mod node_pods;
mod observe;
mod output;
mod probe;
mod progress;
mod rollout;
mod status;
mod uninstall;
mod version;

#[cfg(test)]
mod tests;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

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
    /// Run the certificate authority of a cluster
    Ca(Box<ca::CaArgs>),
    /// Watch what flows, and what is denied and why
    Observe(observe::ObserveArgs),
    /// Show what is in force, and what is not: on this node, or on all of a cluster
    Status(status::StatusArgs),
    /// Ask about policy
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Say what is not in force as it was written, in a cluster or in manifests, without an agent
    #[command(visible_alias = "validate")]
    Analyze(analyze::AnalyzeArgs),
    /// Print the definitions of the kinds that Weft reads (CustomResourceDefinitions)
    Crds(crds::CrdsArgs),
    /// Install Weft into a cluster, with Helm and the chart inside this command
    Install(Box<install::InstallArgs>),
    /// Bring an installed Weft to this version, or to other values
    Upgrade(Box<install::InstallArgs>),
    /// Remove Weft from a cluster and from its nodes' kernels, or from this node's kernel alone
    Uninstall(Box<uninstall::UninstallArgs>),
    /// Check a cluster or a node, before Weft is installed or afterwards
    Check(Box<check::CheckArgs>),
    /// Take a namespace into the mesh, or out of it; nothing is restarted
    Enroll(enroll::EnrollArgs),
    /// Collect what somebody needs to know who looks for a fault
    BugReport(bug_report::BugReportArgs),
    /// Print the versions of this command and of the agents
    Version(version::VersionArgs),
    /// Answer a kubelet's probe of the agent's container
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
    /// Mount a BPF file system at /sys/fs/bpf
    #[command(hide = true)]
    MountBpf,
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

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> ExitCode {
        let default_level = match self.command {
            Command::Agent(_) | Command::Ca(_) => "info",
            _ => "warn",
        };
        let done = self.log.start(default_level).and_then(|()| match self.command {
            Command::Agent(args) => agent::run(*args),
            Command::Ca(args) => ca::run(&args),
            Command::Observe(args) => observe::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Policy(PolicyCommand::Explain(args)) => explain::run(&args),
            Command::Analyze(args) => analyze::run(&args),
            Command::Crds(args) => crds::run(&args),
            Command::Install(args) => install::run(&args, install::What::Install),
            Command::Upgrade(args) => install::run(&args, install::What::Upgrade),
            Command::Uninstall(args) => uninstall::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Enroll(args) => enroll::run(&args),
            Command::BugReport(args) => bug_report::run(&args),
            Command::Version(args) => version::run(&args),
            Command::Probe(args) => probe::run(&args),
            Command::MountBpf => mount_bpf::run(),
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
