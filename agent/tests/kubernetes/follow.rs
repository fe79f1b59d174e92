//! What becomes known of objects.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use weft_agent::source::{Cluster, View};
use weft_model::mesh::Settings;

use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(60);

async fn follow(server: &Server) -> watch::Receiver<View> {
    let cluster = Cluster::new(Some(server.api.kubeconfig()), Settings::default()).await.unwrap();
    cluster.watch()
}

async fn until(
    view: &mut watch::Receiver<View>,
    what: &str,
    holds: impl Fn(&View) -> bool,
) -> View {
    let waited = timeout(DEADLINE, view.wait_for(holds)).await;
    let seen = waited.ok().map(|seen| seen.unwrap().clone());
    seen.unwrap_or_else(|| panic!("not seen: {what}; {:?}", view.borrow().problems))
}

fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

/// A definition of Istio's AuthorizationPolicy, in its older version, that takes any spec.
fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "authorizationpolicies.security.istio.io"},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": {
                "plural": "authorizationpolicies", "singular": "authorizationpolicy",
                "kind": "AuthorizationPolicy", "listKind": "AuthorizationPolicyList",
            },
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_followed_as_they_come_and_go() {
    let server = Server::start().await;
    let mut view = follow(&server).await;
    let first = until(&mut view, "every kind listed", |view| view.complete).await;
    assert!(first.mesh.namespaces.contains_key("default"), "{:?}", first.mesh.namespaces);
    assert!(first.problems.is_empty(), "{:?}", first.problems);

    let mut made = policy("isolate");
    server.objects.apply(&made).await.unwrap();
    until(&mut view, "the policy", |view| view.mesh.policies.len() == 1).await;
    made["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]);
    server.objects.apply(&made).await.unwrap();
    let has_rules =
        |view: &View| view.mesh.policies.values().flatten().any(|policy| !policy.rules.is_empty());
    until(&mut view, "its rule", has_rules).await;

    // A kind that is defined later, and no longer.
    server.objects.apply(&definition()).await.unwrap();
    let authorization = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "default"}, "spec": {},
    });
    server.objects.apply(&authorization).await.unwrap();
    until(&mut view, "the other kind", |view| view.mesh.authorization.len() == 1).await;
    server.objects.delete(&definition()).await.unwrap();
    until(&mut view, "its end", |view| view.mesh.authorization.is_empty()).await;

    server.objects.delete(&made).await.unwrap();
    until(&mut view, "the end of the policy", |view| view.mesh.policies.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_stays_while_the_server_is_away() {
    let server = Server::start().await;
    let (kept, gone, late) = (policy("kept"), policy("gone"), policy("late"));
    server.objects.apply(&kept).await.unwrap();
    server.objects.apply(&gone).await.unwrap();
    let mut view = follow(&server).await;
    let before = until(&mut view, "every kind listed", |view| view.complete).await;
    assert_eq!(before.mesh.policies.len(), 2);

    server.api.kill();
    let away = until(&mut view, "that it is away", |view| !view.problems.is_empty()).await;
    assert!(away.complete && away.mesh == before.mesh, "{:?}", away.problems);
    let restarted = tokio::task::spawn_blocking(move || server.api.start_again().map(|()| server));
    let server = restarted.await.unwrap().unwrap();
    let back = until(&mut view, "that it is back", |view| view.problems.is_empty()).await;
    assert_eq!(back.mesh, before.mesh);
    server.objects.delete(&gone).await.unwrap();
    server.objects.apply(&late).await.unwrap();
    let names = |view: &View| -> Vec<String> {
        view.mesh.policies.keys().map(|object| object.name.name.to_string()).collect()
    };
    until(&mut view, "what changed since", |view| names(view) == ["kept", "late"]).await;
}
