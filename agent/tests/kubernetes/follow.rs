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
    let cluster = Cluster::new(Some(server.kubeconfig()), Settings::default()).await.unwrap();
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

/// A definition that takes everything, of Istio's AuthorizationPolicy.
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
#[ignore = "needs Kubernetes' own programs"]
async fn objects_are_followed_as_they_come_and_go() {
    let server = Server::start().await;
    let mut view = follow(&server).await;
    let first = until(&mut view, "every kind listed", |view| view.complete).await;
    assert!(first.mesh.namespaces.contains_key("default"), "{:?}", first.mesh.namespaces);
    assert!(first.problems.is_empty(), "{:?}", first.problems);

    let made = policy("isolate");
    server.create(&made).await;
    until(&mut view, "the policy", |view| view.mesh.policies.len() == 1).await;
    let mut bad = policy("isolate");
    bad["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]);
    server.change(&bad).await;
    let has_rules =
        |view: &View| view.mesh.policies.values().flatten().any(|policy| !policy.rules.is_empty());
    until(&mut view, "its rule", has_rules).await;

    // A kind that is defined later, and no longer.
    server.create(&definition()).await;
    let authorization = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "default"}, "spec": {},
    });
    until(&mut view, "the definition", |view| view.complete).await;
    let mut tries = 0;
    while server.client.list_api_group_resources("security.istio.io/v1beta1").await.is_err() {
        tries += 1;
        assert!(tries < 600, "the definition is never served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.create(&authorization).await;
    until(&mut view, "the other kind", |view| view.mesh.authorization.len() == 1).await;
    server.delete(&definition()).await;
    until(&mut view, "its end", |view| view.mesh.authorization.is_empty()).await;

    server.delete(&made).await;
    until(&mut view, "the end of the policy", |view| view.mesh.policies.is_empty()).await;
}
