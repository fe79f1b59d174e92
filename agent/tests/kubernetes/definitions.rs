//! The definitions of kinds, as an API server takes them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions::is_crd_established};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::timeout;
use weft_agent::crd;
use weft_tests::kubernetes::Objects;

use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(60);

/// Installs definitions, and waits until they are served.
pub async fn install(client: &Client, definitions: Vec<CustomResourceDefinition>) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions {
        let name = definition.name_any();
        let params = PatchParams::apply("weft-tests").force();
        api.patch(&name, &params, &Patch::Apply(&definition)).await.unwrap();
        let established = await_condition(api.clone(), &name, is_crd_established());
        timeout(DEADLINE, established).await.expect(&name).unwrap();
        let status = api.get(&name).await.unwrap().status.unwrap();
        for condition in status.conditions.unwrap_or_default() {
            let is_bad = condition.type_ == "NonStructuralSchema" && condition.status == "True"
                || condition.type_ == "NamesAccepted" && condition.status != "True";
            assert!(!is_bad, "{name}: {condition:?}");
        }
    }
}

/// Offers an object that is not kept, in the namespace `default` if its kind has namespaces. What
/// the API server makes of it, or what it says.
async fn offer(objects: &Objects, object: &Value) -> Result<DynamicObject, String> {
    let mut offered: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    offered.metadata.namespace = None;
    let api = objects.of_kind(&json!(offered)).await.unwrap();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    match api.create(&params, &offered).await {
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
        Ok(object) => Ok(object),
    }
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"name": "p"}, "spec": spec,
    })
}

fn settings(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "MeshSettings",
        "metadata": {"name": name}, "spec": spec,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_are_served_and_their_rules_hold() {
    let server = Server::start().await;
    install(&server.objects.client(), crd::own()).await;
    let good = [
        policy(json!({
            "endpointSelector": {"matchLabels": {"app": "db"}},
            "ingress": [
                {
                    "fromIdentities": ["spiffe://cluster.local/ns/shop/sa/web", "*/sa/a", "*"],
                    "toPorts": [{
                        "ports": [{"port": 80, "endPort": 90}, {"port": "http", "protocol": "TCP"}],
                        "rules": {"http": [{
                            "methods": ["GET"], "paths": ["/a/*"], "hosts": ["a"],
                            "headers": [{"name": "x", "value": "y"}],
                            "jwt": [{"issuer": "i", "audiences": ["a"], "claims": {"g": ["a"]}}],
                        }]},
                    }],
                },
                {"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]},
                {"fromEntities": ["world-ipv4", "kube-apiserver"]},
                {},
            ],
            "egressDeny": [{"toServices": [{"k8sService": {"serviceName": "a"}}]}],
            "enableDefaultDeny": {"egress": false},
        })),
        settings(
            "default",
            json!({
                "mtls": {"mode": "STRICT"}, "sameNode": "mtls", "dialects": {"istio": false},
                "trustDomain": "shop.example", "certificateLife": "1h30m",
            }),
        ),
        settings("default", json!({})),
    ];
    for object in good {
        let taken = offer(&server.objects, &object).await;
        let taken = taken.unwrap_or_else(|error| panic!("{error}: {object:#}"));
        assert_eq!(taken.data["spec"], object["spec"], "something was dropped");
    }
    let rule = |rule: Value| policy(json!({"endpointSelector": {}, "ingress": [rule]}));
    let port = |port: Value| rule(json!({"toPorts": [{"ports": [port]}]}));
    let bad = [
        (settings("other", json!({})), "its settings are called"),
        (settings("default", json!({"certificateLife": "1s"})), "from 10s to 8760h"),
        (settings("default", json!({"certificateLife": "9999h"})), "from 10s to 8760h"),
        (settings("default", json!({"certificateLife": "long"})), "certificateLife"),
        (settings("default", json!({"mtls": {"mode": "ON"}})), "Unsupported value"),
        (settings("default", json!({"sameNode": "allow"})), "Unsupported value"),
        (settings("default", json!({"trustDomain": "spiffe://a"})), "trustDomain"),
        (policy(json!({"ingress": [{}]})), "endpointSelector"),
        (rule(json!({"fromEntities": ["all"], "fromCIDR": ["::/0"]})), "names peers in one way"),
        (rule(json!({"fromIdentities": ["a*b"]})), "fromIdentities"),
        (rule(json!({"fromEntities": ["nobody"]})), "Unsupported value"),
        (port(json!({"port": 90, "endPort": 80})), "endPort is below port"),
        (port(json!({"port": 80, "protocol": "HTTP"})), "Unsupported value"),
        (port(json!({"port": true})), "port"),
        (
            policy(json!({"endpointSelector": {}, "egress": [{"toServices": [{}]}]})),
            "one of k8sService",
        ),
    ];
    for (object, said) in bad {
        let refused = offer(&server.objects, &object).await;
        let refused = refused.expect_err(&format!("{object:#} was taken"));
        assert!(refused.contains(said), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_users_are_taken_as_they_are() {
    let server = Server::start().await;
    install(&server.objects.client(), crd::compat()).await;
    let whole = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "p"},
        "specs": [{
            "nodeSelector": {"matchLabels": {"a": "b"}},
            "ingress": [{"fromNodes": [{}], "icmps": [{"fields": [{"type": 8}]}]}],
            "egress": [{"toFQDNs": [{"matchName": "a"}], "toPorts": [{
                "ports": [{"port": "53"}], "rules": {"dns": [{"matchPattern": "*"}]},
                "terminatingTLS": {"secret": {"name": "a"}},
            }]}],
            "labels": [{"key": "a"}],
        }],
    });
    let taken = offer(&server.objects, &whole).await.unwrap();
    assert_eq!(taken.data["specs"], whole["specs"], "something was dropped");

    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !corpus.is_dir() {
        println!("skipped: {} is absent", corpus.display());
        return;
    }
    let mut offered = 0;
    for folder in fs::read_dir(corpus).unwrap() {
        let folder = folder.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let Ok(object) = serde_saphyr::from_str::<Value>(&text) else { continue };
            let group = object["apiVersion"].as_str().unwrap_or_default();
            let is_ours = match object["kind"].as_str() {
                Some("AuthorizationPolicy" | "PeerAuthentication") => {
                    group.starts_with("security.istio.io/")
                }
                Some("CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy") => true,
                _ => false,
            };
            if !is_ours {
                continue;
            }
            let taken = offer(&server.objects, &object).await;
            let taken = taken.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(taken.data.get("spec"), object.get("spec"), "{}", path.display());
            offered += 1;
        }
    }
    assert!(offered >= 15, "{offered}");
}
