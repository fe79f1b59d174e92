//! A command on every node, each in a pod of its own that is made as the agent's is: the same
//! image, capabilities and mounts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Toleration};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};

use super::cluster::{AT_ONCE, MESH_LABEL, name_of, node_of, troubles};
use super::progress::Progress;

/// Label of the pods of one run, with a value of its own.
const RUN_LABEL: &str = "weft.dev/run";

/// What came of it on a node: what the command printed and whether it succeeded, or why it could
/// not be run.
pub(super) type Outcome = Result<Ended, String>;

/// A command that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Standard output and standard error.
    pub printed: String,
    pub succeeded: bool,
}

/// Where to run what.
pub(super) struct OnNodes<'a> {
    pub client: &'a Client,
    /// Namespace of the pods; it has to take privileged ones.
    pub namespace: &'a str,
    /// Whose pods are to be copied.
    pub like: &'a DaemonSet,
    /// The command and its arguments.
    pub command: &'a [&'a str],
    /// How long to wait for all.
    pub timeout: Duration,
    /// What it is called while it is waited for.
    pub title: &'a str,
}

impl OnNodes<'_> {
    /// Runs it on every node. The pods are gone when this returns.
    pub(super) async fn run(
        &self,
        nodes: &[Node],
        progress: &mut Progress,
    ) -> anyhow::Result<BTreeMap<String, Outcome>> {
        let run = format!("{:x}-{:x}", std::process::id(), started());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.namespace);
        let mut outcomes: BTreeMap<String, Outcome> = BTreeMap::new();
        let (ready, unready): (Vec<&Node>, Vec<&Node>) =
            nodes.iter().partition(|node| is_ready(node));
        for node in unready {
            let reason = "the node is not ready: no pod can be run there".to_owned();
            outcomes.insert(name_of(node).to_owned(), Err(reason));
        }
        let ran = self.run_pods(&pods, &run, &ready, &mut outcomes, progress).await;
        let mine = ListParams::default().labels(&format!("{RUN_LABEL}={run}"));
        let removed = pods.delete_collection(&DeleteParams::default().grace_period(0), &mine).await;
        ran?;
        removed.with_context(|| format!("pods with the label {RUN_LABEL}={run}"))?;
        Ok(outcomes)
    }

    async fn run_pods(
        &self,
        pods: &Api<Pod>,
        run: &str,
        nodes: &[&Node],
        outcomes: &mut BTreeMap<String, Outcome>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let all = nodes.len() + outcomes.len();
        progress.set(self.title, outcomes.len() as u64, all as u64, "nodes");
        let refused: Vec<(String, kube::Error)> = futures::stream::iter(nodes)
            .map(|node| async {
                let pod = pod(self.like, name_of(*node), self.command, run)?;
                Some((
                    name_of(*node).to_owned(),
                    pods.create(&PostParams::default(), &pod).await.err()?,
                ))
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|refused| async { refused })
            .collect()
            .await;
        outcomes.extend(refused.into_iter().map(|(node, error)| (node, Err(error.to_string()))));
        let config = watcher::Config::default().labels(&format!("{RUN_LABEL}={run}"));
        let mut seen: BTreeMap<String, Pod> = BTreeMap::new();
        let mut changes = watcher(pods.clone(), config).default_backoff().applied_objects().boxed();
        let deadline = tokio::time::Instant::now() + self.timeout;
        while outcomes.len() < all {
            let pod = match tokio::time::timeout_at(deadline, changes.next()).await {
                Ok(Some(Ok(pod))) => pod,
                // The watcher tries again by itself, until the deadline.
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "watching the pods");
                    continue;
                }
                Ok(None) | Err(_) => break,
            };
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let node = node_of(&pod).to_owned();
            if let Some(succeeded) = match phase {
                Some("Succeeded") => Some(true),
                Some("Failed") => Some(false),
                _ => None,
            } {
                let printed = pods
                    .logs(name_of(&pod), &LogParams::default())
                    .await
                    .unwrap_or_else(|error| format!("its output cannot be read: {error}"));
                outcomes.insert(node, Ok(Ended { printed, succeeded }));
                progress.set(self.title, outcomes.len() as u64, all as u64, "nodes");
            } else if let Some(reason) = hopeless(&pod) {
                outcomes.insert(node, Err(reason));
            } else {
                seen.insert(node, pod);
            }
        }
        for node in nodes {
            let name = name_of(*node);
            if !outcomes.contains_key(name) {
                let reason = seen.get(name).map(troubles).unwrap_or_default();
                let reason = match reason.first() {
                    Some(reason) => reason.clone(),
                    None => format!("its pod has not ended within {} s", self.timeout.as_secs()),
                };
                outcomes.insert(name.to_owned(), Err(reason));
            }
        }
        Ok(())
    }
}

/// Why a pod will not run, however long one waits.
fn hopeless(pod: &Pod) -> Option<String> {
    const REASONS: [&str; 4] =
        ["ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError"];
    troubles(pod).into_iter().find(|trouble| REASONS.iter().any(|reason| trouble.contains(reason)))
}

/// Nodes of Linux.
pub(super) async fn linux_nodes(client: &Client) -> anyhow::Result<Vec<Node>> {
    let linux = ListParams::default().labels("kubernetes.io/os=linux");
    Ok(Api::<Node>::all(client.clone()).list(&linux).await.context("nodes")?.items)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Milliseconds since 1970: makes the names of a run's pods its own.
fn started() -> u128 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis())
}

/// A pod for one node, as the DaemonSet's are, with the agent's container alone and another
/// command in it; none if the DaemonSet has no such container.
fn pod(like: &DaemonSet, node: &str, command: &[&str], run: &str) -> Option<Pod> {
    let template = like.spec.as_ref()?.template.clone();
    let spec = template.spec?;
    let mut agent = spec.containers.into_iter().find(|container| container.name == "agent")?;
    agent.command = Some(command.iter().map(|word| (*word).to_owned()).collect());
    agent.args = None;
    agent.startup_probe = None;
    agent.readiness_probe = None;
    agent.liveness_probe = None;
    // Tokens and the trust bundle are the agent's alone.
    let volumes: Vec<_> = spec
        .volumes
        .into_iter()
        .flatten()
        .filter(|volume| volume.host_path.is_some() || volume.empty_dir.is_some())
        .collect();
    let kept = |name: &str| volumes.iter().any(|volume| volume.name == name);
    agent.volume_mounts = agent
        .volume_mounts
        .map(|mounts| mounts.into_iter().filter(|mount| kept(&mount.name)).collect());
    let mut pod = Pod::default();
    pod.metadata.generate_name = Some("weft-on-node-".to_owned());
    pod.metadata.labels = Some(BTreeMap::from([
        (RUN_LABEL.to_owned(), run.to_owned()),
        ("app.kubernetes.io/part-of".to_owned(), "weft".to_owned()),
        (MESH_LABEL.to_owned(), "disabled".to_owned()),
    ]));
    pod.spec = Some(PodSpec {
        containers: vec![agent],
        volumes: Some(volumes),
        node_name: Some(node.to_owned()),
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        // Any taint.
        tolerations: Some(vec![Toleration {
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }]),
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        image_pull_secrets: spec.image_pull_secrets,
        termination_grace_period_seconds: Some(1),
        ..PodSpec::default()
    });
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_keeps_what_the_kernel_needs_and_nothing_that_opens_the_cluster() {
        let like: DaemonSet = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "weft-agent"},
            "spec": {"selector": {}, "template": {"spec": {
                "hostPID": true,
                "serviceAccountName": "weft-agent",
                "containers": [
                    {"name": "agent", "image": "weft:1", "command": ["weft", "agent"],
                     "args": ["--node=x"], "livenessProbe": {"exec": {"command": ["weft"]}},
                     "securityContext": {"capabilities": {"add": ["BPF"]}},
                     "volumeMounts": [{"name": "bpf", "mountPath": "/sys/fs/bpf"},
                                      {"name": "token", "mountPath": "/var/run/secrets"}]},
                    {"name": "proxy", "image": "weft:1"}],
                "volumes": [{"name": "bpf", "hostPath": {"path": "/sys/fs/bpf"}},
                            {"name": "token", "projected": {"sources": []}}]}}}
        }))
        .unwrap();
        let pod = pod(&like, "n1", &["weft", "check", "--node"], "r1").unwrap();
        let spec = pod.spec.unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("n1"));
        assert_eq!(spec.host_pid, Some(true));
        assert_eq!(spec.service_account_name, None);
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.volumes.unwrap().len(), 1);
        let [agent] = &spec.containers[..] else { panic!("{:?}", spec.containers) };
        assert_eq!(agent.command.as_deref().unwrap(), ["weft", "check", "--node"]);
        assert_eq!(agent.args, None);
        assert!(agent.liveness_probe.is_none());
        assert_eq!(agent.volume_mounts.as_ref().unwrap().len(), 1);
        let context = agent.security_context.as_ref().unwrap();
        assert_eq!(context.capabilities.as_ref().unwrap().add.as_deref().unwrap(), ["BPF"]);
    }
}
