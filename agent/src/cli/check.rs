//! `weft check`: of a node, of a cluster before Weft is installed, and afterwards.

mod after;
mod before;
mod finding;
mod meshes;
mod node;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::client::block_on;
use super::cluster::ClusterArgs;
use super::helm::ValuesArgs;
use super::output::{Paint, TableOrJson, print};
use super::{EXIT_FOUND_WRONG, duration};

pub(super) use after::TRUST_BUNDLE;
pub(super) use finding::{Finding, Verdict};
pub(super) use meshes::conflicts;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Check whether the cluster can run Weft, before it is installed
    #[arg(long, conflicts_with = "node")]
    pre: bool,
    /// Check this machine alone: no cluster is asked
    #[arg(long)]
    node: bool,
    /// With --pre: do not run a pod on every node to look at its kernel and mounts
    #[arg(long, requires = "pre")]
    skip_nodes: bool,
    /// How long the pods of --pre may take
    #[arg(long, default_value = "2m", value_parser = duration::parse, value_name = "TIME")]
    timeout: Duration,
    /// With --node: root of the pods' cgroups [default: found in the hierarchy]
    #[arg(long, env = "WEFT_PODS_CGROUP", value_name = "PATH")]
    pods_cgroup: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
    #[command(flatten)]
    values: ValuesArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = if args.node {
        node::check(args.pods_cgroup.as_deref())
    } else if args.pre {
        block_on(before::check(args))?
    } else if args.cluster.is_known() {
        block_on(after::check(&args.cluster))?
    } else {
        // A machine without Kubernetes.
        node::check(args.pods_cgroup.as_deref())
    };
    let counts = finding::counts(&findings);
    let missing = counts.get(&Verdict::Missing).copied().unwrap_or(0);
    match args.output {
        TableOrJson::Json => print(serde_json::to_string(&findings)?)?,
        TableOrJson::Table => {
            print(finding::text(&findings, Paint::stdout()))?;
            let warnings = counts.get(&Verdict::Warning).copied().unwrap_or(0);
            let looked = findings.len();
            print(format_args!("\n{looked} checks: {missing} missing, {warnings} warnings"))?;
        }
    }
    Ok(if missing > 0 { ExitCode::from(EXIT_FOUND_WRONG) } else { ExitCode::SUCCESS })
}
