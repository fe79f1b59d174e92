//! `weft enroll`: takes a namespace into the mesh, or out of it.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde::Serialize;
use serde_json::{Value, json};
use weft_model::dialect::read_object;
use weft_model::mesh::{Mesh, Name, SYSTEM_NAMESPACES, Settings};

use super::check::conflicts;
use super::client::block_on;
use super::cluster::{Cluster, ClusterArgs, MESH_LABEL, name_of, node_of};
use super::output::{Paint, TableOrJson, lines, print, table};

/// Containers that other meshes put into pods.
const SIDECARS: [&str; 4] = ["istio-proxy", "linkerd-proxy", "consul-dataplane", "kuma-sidecar"];

#[derive(Debug, Args)]
pub(super) struct EnrollArgs {
    /// The namespace
    #[arg(value_name = "NAMESPACE")]
    target: String,
    /// Take it out of the mesh
    #[arg(long)]
    remove: bool,
    /// Also where another mesh has it, or where it is one of the system's
    #[arg(long)]
    force: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A pod, and whether it is in the mesh.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Member {
    pod: String,
    node: String,
    in_mesh: bool,
    /// Why, where its namespace's label does not decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(super) fn run(args: &EnrollArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cluster = args.cluster.connect().await?;
        let name = &args.target;
        let namespaces = cluster.all::<Namespace>();
        let namespace = namespaces
            .get_opt(name)
            .await
            .with_context(|| format!("namespace {name}"))?
            .with_context(|| format!("there is no namespace {name}"))?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), name);
        let pods = pods.list(&ListParams::default()).await.context("pods")?.items;
        if !args.remove {
            let found = obstacles(&cluster, &namespace, &pods).await?;
            if !found.is_empty() && !args.force {
                bail!(
                    "{name} was not enrolled: {}. --force does it all the same",
                    found.join("; ")
                );
            }
        }
        // Out of the mesh also where all are in it that say nothing.
        let value = if args.remove { "disabled" } else { "enabled" };
        let patch = Patch::Merge(json!({"metadata": {"labels": {MESH_LABEL: value}}}));
        let labelled = namespaces
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("namespace {name}"))?;
        let members = members(&labelled, &pods);
        match args.output {
            TableOrJson::Json => print(serde_json::to_string(&members)?)?,
            TableOrJson::Table => print(text(name, args.remove, &members, Paint::stdout()))?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Why the namespace should not be enrolled.
async fn obstacles(
    cluster: &Cluster,
    namespace: &Namespace,
    pods: &[Pod],
) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let name = name_of(namespace);
    if SYSTEM_NAMESPACES.contains(&name) || name == cluster.namespace {
        found.push("it is one of the system's".to_owned());
    }
    let with_sidecars: Vec<String> = pods.iter().filter_map(sidecar).collect();
    if !with_sidecars.is_empty() {
        found.push(format!(
            "pods have sidecars of another mesh ({}): take it out of that one, and restart them",
            with_sidecars.join(", ")
        ));
    }
    let asks = conflicts(namespace);
    if asks.iter().any(|asks| asks == "istio.io/dataplane-mode=ambient") {
        let sets = cluster.all::<DaemonSet>().list_metadata(&ListParams::default()).await;
        if sets.context("DaemonSets")?.iter().any(|set| name_of(set) == "ztunnel") {
            found.push("Istio's ztunnel has it (istio.io/dataplane-mode=ambient)".to_owned());
        }
    }
    let injected: Vec<&str> = asks
        .iter()
        .map(String::as_str)
        .filter(|asks| !asks.starts_with("istio.io/dataplane-mode"))
        .collect();
    if !injected.is_empty() && with_sidecars.is_empty() {
        // Nothing injects them now; a pod that is made later may be injected.
        found.push(format!("it asks another mesh for sidecars ({})", injected.join(", ")));
    }
    Ok(found)
}

fn sidecar(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let container = containers.into_iter().find(|one| SIDECARS.contains(&one.name.as_str()))?;
    Some(format!("{}: {}", name_of(pod), container.name))
}

/// Which pods are in the mesh now: by the agents' own reading of them.
fn members(namespace: &Namespace, pods: &[Pod]) -> Vec<Member> {
    let mut mesh = Mesh::default();
    let mut add = |object: serde_json::Result<Value>, kind: &str| {
        // What is listed does not say what it is.
        if let Ok(Value::Object(mut fields)) = object {
            fields.insert("apiVersion".to_owned(), "v1".into());
            fields.insert("kind".to_owned(), kind.into());
            mesh.insert_document(&read_object(&Settings::default(), &Value::Object(fields)));
        }
    };
    add(serde_json::to_value(namespace), "Namespace");
    pods.iter().for_each(|pod| add(serde_json::to_value(pod), "Pod"));
    let enrolled_namespace = namespace_says(namespace);
    pods.iter()
        .filter_map(|pod| {
            let name = Name { namespace: name_of(namespace).into(), name: name_of(pod).into() };
            let known = mesh.pods.get(&name).filter(|pod| !pod.finished)?;
            let in_mesh = mesh.is_enrolled(known);
            let reason = if known.host_network {
                Some("it has the node's network".to_owned())
            } else if in_mesh != enrolled_namespace {
                Some("by a label or annotation of its own".to_owned())
            } else {
                None
            };
            let (pod, node) = (name_of(pod).to_owned(), node_of(pod).to_owned());
            Some(Member { pod, node, in_mesh, reason })
        })
        .collect()
}

/// What the label says that has just been set.
fn namespace_says(namespace: &Namespace) -> bool {
    let labels = namespace.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(MESH_LABEL)).is_some_and(|value| value == "enabled")
}

fn text(namespace: &str, remove: bool, members: &[Member], paint: Paint) -> String {
    let done = if remove { "is out of the mesh" } else { "is in the mesh" };
    let heading = paint.strong(format_args!("Namespace {namespace} {done}."));
    if members.is_empty() {
        return format!("{heading} It has no pods now.");
    }
    let mut rows = table(&["POD", "NODE", "IN THE MESH"]);
    for member in members {
        let mut word = if member.in_mesh { "yes" } else { "no" }.to_owned();
        if let Some(reason) = &member.reason {
            word.push_str(": ");
            word.push_str(reason);
        }
        rows.add_row([&member.pod, &member.node, &word]);
    }
    format!("{heading} Nothing was restarted.\n\n{}", lines(&mut rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, labels: serde_json::Value, spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": labels},
            "spec": spec,
            "status": {"phase": "Running", "podIP": "10.0.0.1"}
        }))
        .unwrap()
    }

    #[test]
    fn a_pods_own_label_and_network_go_before_its_namespaces_label() {
        let namespace: Namespace = serde_json::from_value(
            json!({"metadata": {"name": "shop", "labels": {MESH_LABEL: "enabled"}}}),
        )
        .unwrap();
        let plain = json!({"containers": [{"name": "main"}]});
        let pods = [
            pod("a", json!({}), plain.clone()),
            pod("b", json!({MESH_LABEL: "disabled"}), plain.clone()),
            pod("c", json!({}), json!({"containers": [{"name": "main"}], "hostNetwork": true})),
        ];
        let members = members(&namespace, &pods);
        let found: Vec<(&str, bool)> =
            members.iter().map(|member| (member.pod.as_str(), member.in_mesh)).collect();
        assert_eq!(found, [("a", true), ("b", false), ("c", false)]);
        let text = text("shop", false, &members, Paint(false));
        assert!(text.contains("no: by a label or annotation of its own"), "{text}");
    }

    #[test]
    fn sidecars_of_other_meshes_are_seen() {
        let injected = pod("a", json!({}), json!({"containers": [{"name": "istio-proxy"}]}));
        assert_eq!(sidecar(&injected).as_deref(), Some("a: istio-proxy"));
        let native = json!({"containers": [{"name": "main"}],
                            "initContainers": [{"name": "linkerd-proxy"}]});
        assert_eq!(sidecar(&pod("b", json!({}), native)).as_deref(), Some("b: linkerd-proxy"));
        assert_eq!(sidecar(&pod("c", json!({}), json!({"containers": [{"name": "main"}]}))), None);
    }
}
