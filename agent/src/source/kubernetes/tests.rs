use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::{Value, json};
use weft_model::dialect::read_object;
use weft_model::mesh::{Action, Name, Resource, Settings};

use super::follow::Seen;
use super::kinds::{KINDS, Kind, OtherFields, PodFields};
use super::object::{Fields, Object};
use super::state::State;

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.kind == name).unwrap()
}

fn name(namespace: &str, name: &str) -> Name {
    Name { namespace: namespace.into(), name: name.into() }
}

fn seen(kind: &Kind, mut value: Value) -> Seen {
    let resource = kind.resource(kind.versions[0]);
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = kind.kind.into();
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
    Seen {
        name: name(text("namespace"), text("name")),
        document: read_object(&Settings::default(), &value),
    }
}

fn kept<F: Fields>(kind: &Kind, value: &Value) -> Value {
    let object = Object::<F>::deserialize(value).unwrap();
    object.into_value(&kind.resource("v1"))
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"),
            "labels": {"app": "web"},
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

#[test]
fn only_what_is_read_is_kept_of_an_object() {
    let value = json!({
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
            "managedFields": [{"fieldsV1": {"f:spec": {}}}],
            "annotations": {"weft.dev/accelerate": "false", "big": "text"},
        },
        "spec": {
            "nodeName": "n1",
            "volumes": [{"name": "v"}],
            "containers": [
                {"name": "main", "image": "i", "ports": [{"name": "http", "containerPort": 80}]},
            ],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}]},
    });
    assert_eq!(
        kept::<PodFields>(kind("Pod"), &value),
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u",
                "annotations": {"weft.dev/accelerate": "false"},
            },
            "spec": {
                "nodeName": "n1",
                "containers": [
                    {"name": "main", "ports": [{"name": "http", "containerPort": 80}]},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        })
    );
    let policy = json!({
        "metadata": {
            "name": "p", "namespace": "shop", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"podSelector": {}},
        "status": {"conditions": []},
    });
    let kept = kept::<OtherFields>(kind("NetworkPolicy"), &policy);
    assert_eq!(kept["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(kept["spec"], json!({"podSelector": {}}));
    assert_eq!(kept["metadata"]["generation"], 3);
    assert_eq!(kept["status"], json!({}));
}

#[test]
fn a_policy_that_is_only_tried_is_told_from_the_others() {
    let policies = kind("AuthorizationPolicy");
    let policy = json!({
        "metadata": {
            "name": "p", "namespace": "shop", "annotations": {"istio.io/dry-run": "true"},
        },
        "spec": {"action": "DENY", "rules": [{}]},
    });
    let kept = seen(policies, kept::<OtherFields>(policies, &policy));
    let [Resource::Authorization(read)] = &kept.document.resources[..] else { panic!("{kept:?}") };
    assert_eq!(read.action, Action::Audit);
}

#[test]
fn every_kind_that_is_followed_is_read() {
    for kind in KINDS {
        for version in kind.versions {
            let resource = kind.resource(version);
            let value = json!({
                "apiVersion": resource.api_version, "kind": kind.kind,
                "metadata": {"name": "one"}, "spec": {}, "addressType": "IPv4", "endpoints": [],
            });
            let document = read_object(&Settings::default(), &value);
            let unread = document.findings.iter().find(|finding| {
                finding.reason.contains("not read") || finding.reason.contains("not supported")
            });
            assert!(unread.is_none(), "{kind:?} {version}: {unread:?}");
            assert_eq!(document.object.unwrap().kind.as_ref(), kind.kind);
        }
        let defined = Kind::defined_by(&kind.definition());
        assert_eq!(defined.is_some(), kind.custom, "{kind:?}");
    }
    assert!(Kind::defined_by("authorizationpolicies.policy.linkerd.io").is_none());
}

#[test]
fn what_a_complete_list_does_not_have_has_gone() {
    let pods = kind("Pod");
    let mut state = State::new(Settings::default());
    assert!(state.take(pods, seen(pods, pod("a", "10.0.0.1"))).mesh);
    assert!(state.take(pods, seen(pods, pod("b", "10.0.0.2"))).mesh);
    assert!(!state.take(pods, seen(pods, pod("b", "10.0.0.2"))).mesh, "nothing new");
    let labels: Vec<_> = state.mesh.pods.values().map(|pod| &pod.labels).collect();
    assert!(Arc::ptr_eq(labels[0], labels[1]), "equal labels are held twice");

    let listed: HashSet<Name> = [name("shop", "b")].into();
    assert!(state.retain(pods, &listed).mesh);
    assert_eq!(state.mesh.pods.keys().collect::<Vec<_>>(), [&name("shop", "b")]);
    assert!(state.remove(pods, name("shop", "b")).mesh);
    assert!(!state.remove(pods, name("shop", "b")).mesh);
}

#[test]
fn a_bad_version_leaves_the_last_good_one_in_force() {
    let policies = kind("NetworkPolicy");
    let policy = |spec: Value| {
        seen(policies, json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec}))
    };
    let good = json!({"podSelector": {"matchLabels": {"app": "web"}}});
    let bad = json!({"podSelector": {}, "ingress": [{"ports": [{"port": 70000}]}]});
    let mut state = State::new(Settings::default());

    let effect = state.take(policies, policy(good));
    assert!(effect.mesh && !effect.findings);
    let mesh = state.mesh.clone();
    let effect = state.take(policies, policy(bad.clone()));
    assert!(effect.findings && !effect.mesh);
    assert_eq!(state.mesh, mesh);
    let said: Vec<String> = state.findings(&[]).iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["NetworkPolicy shop/p: spec.ingress[0].ports[0].port: 70000 is no port; ports go from 1 \
          to 65535"]
    );

    // Where there never was a good one, what it selects is isolated.
    let mut state = State::new(Settings::default());
    assert!(state.take(policies, policy(bad)).mesh);
    let standing = state.mesh.policies.values().flatten().next().unwrap();
    assert!(standing.isolates_ingress && standing.rules.is_empty());
    assert!(state.retain(policies, &HashSet::new()).mesh);
    assert!(state.mesh.policies.is_empty() && state.findings(&[]).is_empty());
}
