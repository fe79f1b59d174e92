//! What the shop is on: the standalone test cluster, or a Kubernetes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::{Cluster, Mesh, Output, PodAddresses};

use super::expectation::{Expectation, Plan, Seen, Target};
use super::flows::Flows;
use crate::repository::find_command;

/// How long a client waits for its answer.
const PATIENCE: &str = "3";
/// How long after the traffic the flows may take to be seen.
const FLOWS_WITHIN: Duration = Duration::from_secs(5);

/// A cluster with the shop on it.
pub trait Stage: Sync {
    /// Where a target is.
    fn addresses(&self, target: &Target) -> Result<PodAddresses>;
    /// Runs curl with these arguments in a pod, `namespace/name`.
    fn curl(&self, pod: &str, arguments: &[&str]) -> Result<Output>;
    /// What a `weft` command says on each node.
    fn weft_on_all_nodes(&self, words: &[&str]) -> Result<Vec<String>>;
}

/// The test cluster, with a mesh of processes.
pub struct Standalone<'a> {
    pub cluster: &'a Cluster,
    pub mesh: &'a Mesh,
}

impl Stage for Standalone<'_> {
    fn addresses(&self, target: &Target) -> Result<PodAddresses> {
        Ok(match target {
            Target::Service(name) => self.cluster.service(name)?,
            Target::Pod(name) => self.cluster.pod(name)?.addresses(),
            Target::Host(name) => self.cluster.node(name)?.public_addresses(),
        })
    }

    fn curl(&self, pod: &str, arguments: &[&str]) -> Result<Output> {
        let curl = find_command("curl").context("curl is not installed: cargo xtask setup")?;
        self.cluster.pod(pod)?.run(curl).args(arguments).output()
    }

    fn weft_on_all_nodes(&self, words: &[&str]) -> Result<Vec<String>> {
        self.mesh.nodes().iter().map(|node| node.weft(words)?.success()).collect()
    }
}

/// Runs all connections, and gathers what is seen of them.
pub fn traffic(stage: &dyn Stage, plan: &Plan) -> Result<Vec<Seen>> {
    // All at once, as in a shop: a refusal that the client has to wait for delays no other.
    let answers: Vec<_> = thread::scope(|scope| {
        let asking: Vec<_> = plan
            .expectations
            .iter()
            .map(|expected| scope.spawn(move || ask(stage, expected)))
            .collect();
        asking
            .into_iter()
            .map(|answer| match answer.join() {
                Ok(answer) => answer,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<_>>()
    })?;
    let deadline = Instant::now() + FLOWS_WITHIN;
    loop {
        let flows = Flows::read(stage)?;
        let mut seen = Vec::new();
        for (expected, answer) in plan.expectations.iter().zip(&answers) {
            let flows = flows.seen(stage, expected)?;
            seen.push(Seen { answer: Some(answer.clone()), ..flows });
        }
        let agree = plan.expectations.iter().zip(&seen);
        let agree = agree.clone().all(|(expected, seen)| seen.differences(expected).is_empty());
        if agree || Instant::now() > deadline {
            return Ok(seen);
        }
    }
}

/// Has the pod ask for a page; the error is what its curl says.
fn ask(stage: &dyn Stage, expected: &Expectation) -> Result<Result<(), String>> {
    let url = format!("http://{}/", expected.address(stage)?);
    let arguments =
        ["--silent", "--show-error", "--noproxy", "*", "--max-time", PATIENCE, url.as_str()];
    let output = stage.curl(&expected.from, &arguments)?;
    if output.status.success() {
        let from_target = match &expected.to {
            Target::Service(name) | Target::Pod(name) | Target::Host(name) => {
                output.stdout.contains(name.as_str())
            }
        };
        ensure!(from_target, "{url} was answered by {:?}, not by {}", output.stdout, expected.to);
        return Ok(Ok(()));
    }
    let said = output.stderr.lines().find_map(|line| line.strip_prefix("curl: "));
    Ok(Err(said.unwrap_or(output.stderr.trim()).to_owned()))
}
