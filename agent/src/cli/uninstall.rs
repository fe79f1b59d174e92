//! `weft uninstall`: of a cluster, or of this node's kernel alone.

mod cluster;
mod node;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::block_on;
use super::cluster::ClusterArgs;
use super::duration;
use super::output::TableOrJson;
use crate::agent::{PIN_DIR, RUN_DIR};

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// Remove what is in this node's kernel, and nothing else: no cluster is asked
    #[arg(long)]
    node: bool,
    /// With --node: where programs and maps are pinned
    #[arg(long, env = "WEFT_PIN_DIR", default_value = PIN_DIR, value_name = "DIR", requires = "node")]
    pin_dir: PathBuf,
    /// With --node: where the agent's sockets were
    #[arg(long, env = "WEFT_RUN_DIR", default_value = RUN_DIR, value_name = "DIR", requires = "node")]
    run_dir: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Leave Weft's CRDs and their objects
    #[arg(long)]
    keep_crds: bool,
    /// Leave the CA's root (a Secret), so that a new installation has the same trust
    #[arg(long)]
    keep_root: bool,
    /// How long the nodes may take
    #[arg(long, default_value = "3m", value_parser = duration::parse, value_name = "TIME")]
    timeout: Duration,
    /// How to print what was left on nodes
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    if args.node {
        return node::run(&args.pin_dir, &args.run_dir, args.output);
    }
    block_on(cluster::run(args))
}
