//! The cluster that a command is about.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

/// Namespace of the release, unless told otherwise.
pub(super) const NAMESPACE: &str = "weft-system";
/// Name of the release.
pub(super) const RELEASE: &str = "weft";
/// Label of a namespace or pod that says whether it is in the mesh (`enabled`, `disabled`).
pub(super) const MESH_LABEL: &str = "weft.dev/mesh";
/// Selects the agents' pods.
const AGENTS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=agent";
/// Questions to agents that are under way at once.
pub(super) const AT_ONCE: usize = 16;

/// Which cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(super) struct ClusterArgs {
    /// Configuration of the API server's client [default: $KUBECONFIG, ~/.kube/config, or the
    /// pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in it [default: the current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Namespace in which Weft is installed
    #[arg(
        short = 'n',
        long = "weft-namespace",
        visible_alias = "namespace",
        env = "WEFT_NAMESPACE",
        default_value = NAMESPACE,
        value_name = "NAMESPACE"
    )]
    pub namespace: String,
}

/// A client, and where Weft is.
#[derive(Clone)]
pub(super) struct Cluster {
    pub client: Client,
    pub namespace: String,
    /// How people know it: the context's name, or the API server's address.
    pub name: String,
}

/// What a command printed in a container.
#[derive(Debug)]
pub(super) struct Printed {
    pub stdout: String,
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

impl Printed {
    /// What it printed as JSON; the error is what it said instead.
    pub(super) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.stdout).map_err(|_| match self.stderr.trim() {
            "" => anyhow::anyhow!("exit code {}, and no answer", self.code),
            said => anyhow::anyhow!("{}", said.strip_prefix("weft: ").unwrap_or(said)),
        })
    }
}

impl ClusterArgs {
    /// Whether a cluster was named, or is known to the user's environment.
    pub(super) fn is_known(&self) -> bool {
        self.is_named() || Kubeconfig::read().is_ok_and(|known| !known.contexts.is_empty())
    }

    /// Whether the command line names a cluster.
    pub(super) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// A client for it.
    pub(super) async fn connect(&self) -> anyhow::Result<Cluster> {
        let options = KubeConfigOptions { context: self.context.clone(), ..Default::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path)
                    .with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(read, &options).await.context("--kubeconfig")?
            }
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.context("--context")?
            }
            None => Config::infer()
                .await
                .context("no cluster is known: name one with --kubeconfig FILE or $KUBECONFIG")?,
        };
        let name = match (&self.context, &self.kubeconfig) {
            (Some(context), _) => context.clone(),
            _ => config.cluster_url.to_string(),
        };
        let client = Client::try_from(config).context("the API server's client")?;
        Ok(Cluster { client, namespace: self.namespace.clone(), name })
    }
}

impl Cluster {
    /// Objects of a kind in Weft's namespace.
    pub(super) fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of a kind that has no namespaces, or in all of them.
    pub(super) fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// The agents' pods, by node.
    pub(super) async fn agents(&self) -> anyhow::Result<Vec<Pod>> {
        let mut pods = self
            .own::<Pod>()
            .list(&ListParams::default().labels(AGENTS))
            .await
            .with_context(|| format!("agents in namespace {}", self.namespace))?
            .items;
        pods.sort_by(|a, b| node_of(a).cmp(node_of(b)));
        Ok(pods)
    }

    /// Runs a command in the container `agent` of a pod.
    pub(super) async fn in_agent(&self, pod: &str, command: &[&str]) -> anyhow::Result<Printed> {
        let params =
            AttachParams::default().container("agent").stdin(false).stdout(true).stderr(true);
        let mut running = self
            .own::<Pod>()
            .exec(pod, command.iter().copied(), &params)
            .await
            .with_context(|| format!("`{}` in pod {pod}", command.join(" ")))?;
        let status = running.take_status();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let out = running.stdout();
        let err = running.stderr();
        // Both at once: a command that fills one pipe must not wait for the other.
        let (out, err) = tokio::join!(
            async {
                match out {
                    Some(mut out) => out.read_to_end(&mut stdout).await.map(drop),
                    None => Ok(()),
                }
            },
            async {
                match err {
                    Some(mut err) => err.read_to_end(&mut stderr).await.map(drop),
                    None => Ok(()),
                }
            }
        );
        out.and(err).with_context(|| format!("output of pod {pod}"))?;
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        running.join().await.with_context(|| format!("pod {pod}"))?;
        Ok(Printed {
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            code: status.map_or(-1, |status| exit_code(&status)),
        })
    }

    /// Asks every agent the same, and gives each answer with its pod, by node.
    pub(super) async fn ask_agents(
        &self,
        command: &[&str],
    ) -> anyhow::Result<Vec<(Pod, anyhow::Result<Printed>)>> {
        let agents = self.agents().await?;
        let mut answers: Vec<_> = futures::stream::iter(agents)
            .map(|pod| async move {
                let answer = match not_running(&pod) {
                    Some(reason) => Err(anyhow::anyhow!(reason)),
                    None => self.in_agent(name_of(&pod), command).await,
                };
                (pod, answer)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        answers.sort_by(|(a, _), (b, _)| node_of(a).cmp(node_of(b)));
        Ok(answers)
    }
}

/// The exit code in the status of an exec: `NonZeroExitCode` has it as a cause.
fn exit_code(status: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Status) -> i32 {
    if status.status.as_deref() == Some("Success") {
        return 0;
    }
    status
        .details
        .iter()
        .flat_map(|details| details.causes.iter().flatten())
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse().ok())
        .unwrap_or(-1)
}

/// `metadata.name`.
pub(super) fn name_of<K: kube::Resource>(object: &K) -> &str {
    object.meta().name.as_deref().unwrap_or_default()
}

/// `spec.nodeName`.
pub(super) fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Whether all containers of a pod are ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Why no command can be run in the pod's container `agent`.
fn not_running(pod: &Pod) -> Option<String> {
    let agent = container(pod, "agent");
    match agent.and_then(|agent| agent.state.as_ref()) {
        Some(state) if state.running.is_some() => None,
        _ => Some(troubles(pod).into_iter().next().unwrap_or_else(|| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            format!("its pod is {}", phase.unwrap_or_else(|| "not there".to_owned()))
        })),
    }
}

fn container<'a>(
    pod: &'a Pod,
    name: &str,
) -> Option<&'a k8s_openapi::api::core::v1::ContainerStatus> {
    pod.status.as_ref()?.container_statuses.iter().flatten().find(|found| found.name == name)
}

/// What keeps a pod from being ready, as its status says it.
pub(super) fn troubles(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let mut found = Vec::new();
    let containers = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    for container in containers {
        let Some(state) = &container.state else { continue };
        let name = &container.name;
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            if matches!(reason, "PodInitializing" | "ContainerCreating")
                && waiting.message.is_none()
            {
                continue;
            }
            let mut text = format!("container {name}: {reason}");
            let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            let message = last
                .and_then(|last| last.message.as_deref())
                .or(waiting.message.as_deref())
                .and_then(last_line);
            if let Some(message) = message {
                text.push_str(": ");
                text.push_str(message);
            }
            found.push(text);
        } else if let Some(ended) = state.terminated.as_ref().filter(|ended| ended.exit_code != 0) {
            let message = ended.message.as_deref().and_then(last_line).unwrap_or_default();
            found.push(format!("container {name}: exit code {} {message}", ended.exit_code));
        }
    }
    if found.is_empty() {
        let conditions = status.conditions.iter().flatten();
        found.extend(
            conditions
                .filter(|condition| condition.status == "False")
                .filter_map(|condition| condition.message.clone())
                .take(1),
        );
    }
    found
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).rfind(|line| !line.is_empty())
}
