//! Waiting until what was installed runs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};

use super::cluster::{Cluster, is_ready, name_of, node_of, troubles};
use super::progress::Progress;

/// Everything of Weft's.
pub(super) const OWN: &str = "app.kubernetes.io/name=weft";

/// How far a DaemonSet or Deployment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rollout {
    /// Pods of the newest version that are ready.
    pub ready: i32,
    /// Pods that there are to be.
    pub wanted: i32,
    /// The controller has seen the newest version.
    pub observed: bool,
}

impl Rollout {
    pub(super) fn is_complete(self) -> bool {
        self.observed && self.ready >= self.wanted
    }
}

impl From<&DaemonSet> for Rollout {
    fn from(set: &DaemonSet) -> Self {
        let generation = set.metadata.generation;
        set.status.as_ref().map_or(Self { ready: 0, wanted: 1, observed: false }, |status| Self {
            ready: status.updated_number_scheduled.unwrap_or(0).min(status.number_ready),
            wanted: status.desired_number_scheduled,
            observed: status.observed_generation >= generation,
        })
    }
}

impl From<&Deployment> for Rollout {
    fn from(deployment: &Deployment) -> Self {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let generation = deployment.metadata.generation;
        deployment.status.as_ref().map_or(Self { ready: 0, wanted, observed: false }, |status| {
            Self {
                ready: status.updated_replicas.unwrap_or(0).min(status.ready_replicas.unwrap_or(0)),
                wanted,
                observed: status.observed_generation >= generation,
            }
        })
    }
}

/// How far everything of Weft's has come.
pub(super) async fn rollouts(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Rollout>> {
    let own = ListParams::default().labels(OWN);
    let sets = cluster.own::<DaemonSet>().list(&own).await.context("DaemonSets")?;
    let deployments = cluster.own::<Deployment>().list(&own).await.context("Deployments")?;
    Ok(sets
        .iter()
        .map(|set| (format!("DaemonSet {}", name_of(set)), Rollout::from(set)))
        .chain(
            deployments
                .iter()
                .map(|one| (format!("Deployment {}", name_of(one)), Rollout::from(one))),
        )
        .collect())
}

/// Waits until everything is ready; the error names what is not, and why.
pub(super) async fn wait(cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let config = watcher::Config::default().labels(OWN);
    let sets = watcher(cluster.own::<DaemonSet>(), config.clone())
        .default_backoff()
        .applied_objects()
        .map(|set| set.map(|set| (format!("DaemonSet {}", name_of(&set)), Rollout::from(&set))));
    let deployments = watcher(cluster.own::<Deployment>(), config)
        .default_backoff()
        .applied_objects()
        .map(|one| one.map(|one| (format!("Deployment {}", name_of(&one)), Rollout::from(&one))));
    let mut changes = futures::stream::select(sets.boxed(), deployments.boxed());
    let mut state = rollouts(cluster).await?;
    if state.is_empty() {
        anyhow::bail!("there is nothing of Weft in namespace {}", cluster.namespace);
    }
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        for (name, rollout) in &state {
            let (ready, wanted) = (rollout.ready.max(0) as u64, rollout.wanted.max(0) as u64);
            progress.set(name, ready, wanted, "pods ready");
        }
        if state.values().all(|rollout| rollout.is_complete()) {
            return Ok(());
        }
        match tokio::time::timeout_at(deadline, changes.next()).await {
            Ok(Some(Ok((name, rollout)))) => {
                state.insert(name, rollout);
            }
            // The watcher tries again by itself, until the deadline.
            Ok(Some(Err(error))) => tracing::debug!(%error, "watching the roll-out"),
            Ok(None) | Err(_) => break,
        }
    }
    drop(progress);
    let late: Vec<&str> = state
        .iter()
        .filter(|(_, rollout)| !rollout.is_complete())
        .map(|(name, _)| name.as_str())
        .collect();
    let pods = cluster.own::<Pod>().list(&ListParams::default().labels(OWN)).await;
    let mut why = String::new();
    for pod in pods.iter().flatten().filter(|pod| !is_ready(pod)) {
        let troubles = troubles(pod).join("; ");
        why.push_str(&format!("\n  pod {} on {}: {troubles}", name_of(pod), node_of(pod)));
    }
    anyhow::bail!("not ready within {} s: {}{why}", timeout.as_secs(), late.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_out_is_complete_when_the_newest_version_is_ready_everywhere() {
        let set = |observed: i64, updated: i32, ready: i32| -> DaemonSet {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "weft-agent", "generation": 2},
                "status": {"observedGeneration": observed, "desiredNumberScheduled": 2,
                           "updatedNumberScheduled": updated, "numberReady": ready,
                           "currentNumberScheduled": 2, "numberMisscheduled": 0}
            }))
            .unwrap()
        };
        assert!(Rollout::from(&set(2, 2, 2)).is_complete());
        assert!(!Rollout::from(&set(1, 2, 2)).is_complete());
        assert!(!Rollout::from(&set(2, 1, 2)).is_complete());
        assert!(!Rollout::from(&set(2, 2, 1)).is_complete());
        assert!(!Rollout::from(&DaemonSet::default()).is_complete());
    }
}
