//! Other meshes in the cluster: what they take hold of, Weft should not, and the reverse.

use std::collections::BTreeSet;

use anyhow::Context as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;

use super::Finding;
use crate::cli::cluster::{Cluster, name_of};

/// How a mesh is known, and what to do about it.
struct Known {
    name: &'static str,
    /// A part of the name of its webhook that injects sidecars.
    webhook: Option<&'static str>,
    /// Its DaemonSet, where it acts on nodes.
    daemon_set: Option<&'static str>,
    /// A CRD's name ends so.
    crds: &'static str,
    remedy: &'static str,
}

const SIDECARS: &str = "enrol only namespaces that it does not inject; take a namespace out of it, and restart its \
     pods without their sidecars, before `weft enroll`";

const KNOWN: [Known; 6] = [
    Known {
        name: "Istio",
        webhook: Some("istio-sidecar-injector"),
        daemon_set: Some("ztunnel"),
        crds: ".istio.io",
        remedy: "enrol only namespaces that Istio does not have: without its sidecars, and without \
                 the label istio.io/dataplane-mode=ambient while its ztunnel runs",
    },
    Known {
        name: "Linkerd",
        webhook: Some("linkerd-proxy-injector"),
        daemon_set: Some("linkerd-cni"),
        crds: ".linkerd.io",
        remedy: SIDECARS,
    },
    Known {
        name: "Consul",
        webhook: Some("consul-connect-injector"),
        daemon_set: Some("consul-cni"),
        crds: ".consul.hashicorp.com",
        remedy: SIDECARS,
    },
    Known {
        name: "App Mesh",
        webhook: Some("appmesh-controller"),
        daemon_set: None,
        crds: ".appmesh.k8s.aws",
        remedy: SIDECARS,
    },
    Known {
        name: "Kuma",
        webhook: Some("kuma-admission-mutating-webhook"),
        daemon_set: Some("kuma-cni-node"),
        crds: ".kuma.io",
        remedy: SIDECARS,
    },
    Known {
        name: "Cilium",
        webhook: None,
        daemon_set: Some("cilium"),
        crds: ".cilium.io",
        remedy: "Cilium enforces its own policies for all pods, too. Let its socket load balancer \
                 leave pods alone (socketLB.hostNamespaceOnly=true), or it rewrites services before \
                 Weft sees them",
    },
];

/// The names of what there is in the cluster.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub crds: BTreeSet<String>,
    pub webhooks: BTreeSet<String>,
    pub daemon_sets: BTreeSet<String>,
    pub namespaces: Vec<Namespace>,
}

/// Asks the cluster.
pub(super) async fn others(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let all = ListParams::default();
    let crds = cluster.all::<CustomResourceDefinition>().list_metadata(&all).await;
    let webhooks = cluster.all::<MutatingWebhookConfiguration>().list_metadata(&all).await;
    let daemon_sets = cluster.all::<DaemonSet>().list_metadata(&all).await;
    let namespaces = cluster.all::<Namespace>().list(&all).await;
    let names = Names {
        crds: crds.context("CRDs")?.iter().map(|one| name_of(one).to_owned()).collect(),
        webhooks: webhooks.context("webhooks")?.iter().map(|one| name_of(one).to_owned()).collect(),
        daemon_sets: daemon_sets
            .context("DaemonSets")?
            .iter()
            .map(|one| name_of(one).to_owned())
            .collect(),
        namespaces: namespaces.context("namespaces")?.items,
    };
    Ok(found(&names))
}

/// Judges by names.
pub(super) fn found(names: &Names) -> Vec<Finding> {
    const CHECK: &str = "other meshes";
    let mut findings = Vec::new();
    for known in &KNOWN {
        let mut signs = Vec::new();
        if let Some(webhook) = known.webhook {
            signs.extend(
                names
                    .webhooks
                    .iter()
                    .filter(|name| name.contains(webhook))
                    .map(|name| format!("webhook {name}")),
            );
        }
        if let Some(set) = known.daemon_set.filter(|set| names.daemon_sets.contains(*set)) {
            signs.push(format!("DaemonSet {set}"));
        }
        let crds = names.crds.iter().filter(|name| name.ends_with(known.crds)).count();
        if !signs.is_empty() {
            let found = format!("{} is at work ({})", known.name, signs.join(", "));
            findings.push(Finding::warning(CHECK, found, known.remedy));
        } else if crds > 0 {
            // Policies alone are what Weft reads.
            let found = format!("{}: {crds} CRDs, and nothing that acts on them", known.name);
            findings.push(Finding::ok(CHECK, found));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "none"));
    }
    let labelled: Vec<&str> = names
        .namespaces
        .iter()
        .filter(|namespace| !conflicts(namespace).is_empty())
        .map(name_of)
        .collect();
    if !labelled.is_empty() {
        findings.push(Finding::warning(
            "labels",
            format!("other meshes are asked to take {}", labelled.join(", ")),
            "do not enrol them as long as those meshes are at work",
        ));
    }
    findings
}

/// What labels and annotations of a namespace ask of meshes that inject sidecars or redirect
/// pods: each as `key=value`.
pub(in crate::cli) fn conflicts(namespace: &Namespace) -> Vec<String> {
    const ASKS: [(&str, &[&str]); 7] = [
        ("istio-injection", &["enabled"]),
        ("istio.io/rev", &[]),
        ("istio.io/dataplane-mode", &["ambient"]),
        ("linkerd.io/inject", &["enabled", "ingress"]),
        ("consul.hashicorp.com/connect-inject", &["true"]),
        ("appmesh.k8s.aws/sidecarInjectorWebhook", &["enabled"]),
        ("kuma.io/sidecar-injection", &["enabled", "true"]),
    ];
    let metadata = &namespace.metadata;
    let all = metadata.labels.iter().flatten().chain(metadata.annotations.iter().flatten());
    all.filter(|(key, value)| {
        ASKS.iter().any(|(asks, values)| {
            asks == key && (values.is_empty() || values.contains(&value.as_str()))
        })
    })
    .map(|(key, value)| format!("{key}={value}"))
    .collect()
}
