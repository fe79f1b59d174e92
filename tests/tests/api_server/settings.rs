//! MeshSettings that change while traffic flows.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use weft_tests::kubernetes::kubernetes_program;
use weft_tests::{Mesh, Pod, PodSpec, binary, eventually, eventually_async};

use crate::town::{NODES, Town};

/// Traffic from outside the mesh reaches `near` but for these, one of each dialect.
const CILIUM: &str = "cilium";
const ISTIO: &str = "istio";

#[tokio::test(flavor = "multi_thread")]
async fn settings_change_without_a_restart_and_cut_nothing_that_stays_allowed() -> Result<()> {
    let town = Town::build().await?;
    install_definitions(&town)?;
    let [here, _] = NODES;
    let stranger = PodSpec::new("shop", "stranger", here).label("weft.dev/mesh", "disabled");
    let stranger = town.base.add_pod(stranger).await?;
    let options = town.base.prepare_authority("1h").await?;
    let _authority = town.base.start_authority().await?;
    let mesh = town.base.cluster.start_mesh_with(|node| options[node].clone())?;
    let mut load = town.begin()?;
    let agents = || -> Vec<Option<u32>> {
        mesh.nodes().iter().map(|node| node.agent().as_ref().map(|agent| agent.pid())).collect()
    };
    let before = agents();
    let [near, _] = &town.servers;
    let try_it = |what: &str, answered: bool| {
        eventually(&format!("{what}: a stranger to be answered: {answered}"), || {
            (is_answered(&town, &stranger, near).ok()? == answered).then_some(())
        })
    };
    try_it("with no settings", true)?;

    set(&town, &json!({ "mtls": { "mode": "STRICT" } })).await?;
    try_it("STRICT", false)?;
    set(&town, &json!({ "mtls": { "mode": "PERMISSIVE" } })).await?;
    try_it("PERMISSIVE", true)?;

    for (same_node, path) in [("mtls", "tunnel"), ("direct", "direct")] {
        set(&town, &json!({ "sameNode": same_node })).await?;
        eventually(&format!("new connections on the same node to be {path}"), || {
            (last_path(&mesh).ok()? == path).then_some(())
        })?;
    }

    for (dialect, policy) in [
        (
            CILIUM,
            json!({
                "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
                "metadata": { "name": "clients", "namespace": "shop" },
                "spec": {
                    "endpointSelector": { "matchLabels": { "app": "near" } },
                    "ingress": [{ "fromEndpoints": [{ "matchLabels": { "app": "client" } }] }],
                },
            }),
        ),
        (
            ISTIO,
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": { "name": "strict", "namespace": "shop" },
                "spec": { "mtls": { "mode": "STRICT" } },
            }),
        ),
    ] {
        town.base.objects.apply(&policy).await?;
        try_it(&format!("with a policy of {dialect}"), false)?;
        set(&town, &json!({ "dialects": { dialect: false } })).await?;
        try_it(&format!("without {dialect}"), true)?;
        for node in mesh.nodes() {
            eventually("the agent to name what is not in force", || {
                let warnings = node.status().ok()?["warnings"].to_string();
                warnings.contains(&format!("dialects.{dialect}: false")).then_some(())
            })?;
        }
        set(&town, &json!({ "dialects": { dialect: true } })).await?;
        try_it(&format!("with {dialect} again"), false)?;
        town.base.objects.delete(&policy).await?;
        try_it("without the policy", true)?;
    }

    restart_needed(&town, &mesh).await?;

    load.check_held()?;
    let counts = load.counts()?;
    println!("attempts and failures of new connections, near and far: {counts:?}");
    ensure!(counts.iter().all(|(_, failures)| *failures == 0), "{}", load.errors());
    ensure!(agents() == before, "an agent was restarted");
    Ok(())
}

/// What a process has for as long as it runs is told of, and stays.
async fn restart_needed(town: &Town, mesh: &Mesh) -> Result<()> {
    const FIELDS: [&str; 2] = ["spec.trustDomain", "spec.certificateLife"];
    set(town, &json!({ "trustDomain": "other.example", "certificateLife": "2h" })).await?;
    let names_both = |text: String| FIELDS.iter().all(|field| text.contains(field)).then_some(text);
    for node in mesh.nodes() {
        eventually("the agent to tell of both", || {
            names_both(node.status().ok()?["warnings"].to_string())
        })?;
    }
    let object = settings(&json!({}));
    let api = town.base.objects.of_kind(&object).await?;
    let accepted = eventually_async("the condition to tell of both", async || {
        let said = api.get_status("default").await?;
        let conditions = conditions(&said);
        let accepted = conditions.into_iter().find(|one| one["type"] == "Accepted");
        Ok(accepted.filter(|accepted| names_both(accepted["message"].to_string()).is_some()))
    });
    let accepted = accepted.await?;
    ensure!(accepted["status"] == "True", "{accepted:#}");
    ensure!(accepted["reason"] == "AcceptedWithWarnings", "{accepted:#}");

    let analyze = Command::new(binary("weft")?)
        .args(["analyze", "-o", "json", "--kubeconfig"])
        .arg(town.base.api.kubeconfig())
        .output()?;
    let said = String::from_utf8_lossy(&analyze.stdout).into_owned();
    ensure!(names_both(said.clone()).is_some(), "weft analyze: {said}");

    // Who they are is as it was, in what is opened from now on, too.
    let flow = last_flow(mesh)?;
    let identity = "spiffe://cluster.local/ns/shop/sa/client";
    ensure!(flow["source"]["identity"] == identity, "{flow:#}");
    Ok(())
}

fn conditions(object: &DynamicObject) -> Vec<Value> {
    object.data["status"]["conditions"].as_array().cloned().unwrap_or_default()
}

fn settings(spec: &Value) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "MeshSettings",
        "metadata": { "name": "default" }, "spec": spec,
    })
}

/// Makes the settings these.
async fn set(town: &Town, spec: &Value) -> Result<()> {
    town.base.objects.apply(&settings(spec)).await.map(drop)
}

/// Those of the chart.
fn install_definitions(town: &Town) -> Result<()> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft");
    for directory in ["crds", "compat-crds"] {
        let applied = Command::new(kubernetes_program("kubectl")?)
            .args(["apply", "--server-side", "--kubeconfig"])
            .arg(town.base.api.kubeconfig())
            .arg("-f")
            .arg(chart.join(directory))
            .output()?;
        let said = String::from_utf8_lossy(&applied.stderr);
        ensure!(applied.status.success(), "kubectl apply: {said}");
    }
    Ok(())
}

/// What is dropped is not answered at all.
fn is_answered(town: &Town, client: &Pod, server: &Pod) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(1);
    Ok(town.ask_as(client, server, PATIENCE)?["answer"] == "hello")
}

/// The path of the last new connection from the client to the server on its node.
fn last_path(mesh: &Mesh) -> Result<Value> {
    Ok(last_flow(mesh)?["path"].clone())
}

fn last_flow(mesh: &Mesh) -> Result<Value> {
    let [here, _] = NODES;
    let words = ["observe", "-o", "json", "--last", "1", "--from", "shop/client", "--to"];
    let output = mesh.node(here)?.weft(words.iter().chain(&["shop/near"]))?;
    output.json().pop().context(output.stderr)
}
