//! What the cluster says of itself in Kubernetes YAML, as an API server would.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::address::PodAddresses;
use crate::place::HostRecord;
use crate::pod::PodRecord;

/// A namespace with labels of its own. Pods' namespaces that are not declared have the label
/// that puts them in the mesh (`istio.io/dataplane-mode: ambient`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamespaceSpec {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A service. It gets an address of each family.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) affinity_seconds: Option<u32>,
}

/// A port of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Its name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port of the service.
    pub port: u16,
    /// Port of the pods: a number, or the name of a container port.
    pub target: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServiceRecord {
    pub(crate) spec: ServiceSpec,
    pub(crate) addresses: PodAddresses,
}

impl NamespaceSpec {
    /// A namespace without labels: its pods are not in the mesh.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), labels: BTreeMap::new() }
    }

    /// A namespace whose pods are in the mesh.
    pub fn meshed(name: impl Into<String>) -> Self {
        Self::new(name).label("istio.io/dataplane-mode", "ambient")
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

impl ServiceSpec {
    /// A service without pods and ports.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            selector: BTreeMap::new(),
            ports: Vec::new(),
            affinity_seconds: None,
        }
    }

    /// Takes pods with this label.
    pub fn selector(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.selector.insert(key.into(), value.into());
        self
    }

    /// Adds a TCP port.
    pub fn port(self, port: u16, target: u16) -> Self {
        self.port_of("TCP", port, target)
    }

    /// Adds a port of `TCP`, `UDP` or `SCTP`.
    pub fn port_of(mut self, protocol: &str, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort {
            name: format!("{}-{port}", protocol.to_lowercase()),
            protocol: protocol.into(),
            port,
            target: target.to_string(),
        });
        self
    }

    /// A client stays with its pod for this long.
    pub fn client_ip_affinity(mut self, seconds: u32) -> Self {
        self.affinity_seconds = Some(seconds);
        self
    }

    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Renders the objects, one document each. JSON is YAML's flow style.
pub(crate) fn render(
    nodes: &[HostRecord],
    namespaces: &[NamespaceSpec],
    pods: &[PodRecord],
    services: &[ServiceRecord],
) -> String {
    let listed: Vec<_> = pods.iter().filter(|pod| !pod.spec.unlisted).collect();
    let mut declared: BTreeMap<&str, NamespaceSpec> =
        namespaces.iter().map(|namespace| (&*namespace.name, namespace.clone())).collect();
    for pod in pods {
        let name = &pod.spec.namespace;
        declared.entry(name).or_insert_with(|| NamespaceSpec::meshed(name));
    }
    let accounts: BTreeMap<_, _> =
        listed.iter().map(|pod| ((&pod.spec.namespace, &pod.spec.service_account), ())).collect();

    let nodes = nodes.iter().filter(|node| !node.outside).map(node);
    let namespaces = declared.values().map(namespace);
    let accounts = accounts.keys().map(|(namespace, name)| account(namespace, name));
    let pods = listed.into_iter().map(pod);
    let services = services.iter().map(service);
    let mut text = String::new();
    for object in nodes.chain(namespaces).chain(accounts).chain(pods).chain(services) {
        writeln!(text, "---\n{object:#}").ok();
    }
    text
}

fn node(node: &HostRecord) -> Value {
    let cidrs = node.addresses.pod_cidrs();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name, "labels": { "kubernetes.io/hostname": node.name } },
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
        "status": { "addresses": [
            { "type": "InternalIP", "address": node.addresses.ipv4 },
            { "type": "InternalIP", "address": node.addresses.ipv6 },
            { "type": "Hostname", "address": node.name },
        ]},
    })
}

fn namespace(namespace: &NamespaceSpec) -> Value {
    let mut labels = namespace.labels.clone();
    labels.insert("kubernetes.io/metadata.name".into(), namespace.name.clone());
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": namespace.name, "labels": labels },
    })
}

fn account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": name, "namespace": namespace },
    })
}

fn pod(pod: &PodRecord) -> Value {
    let spec = &pod.spec;
    let ports = spec.ports.iter().map(
        |port| json!({ "name": port.name, "protocol": port.protocol, "containerPort": port.port }),
    );
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": pod.uid,
            "labels": spec.labels,
            "annotations": spec.annotations,
        },
        "spec": {
            "nodeName": spec.node,
            "serviceAccountName": spec.service_account,
            "hostNetwork": spec.host_network,
            "containers": [
                { "name": "main", "image": "local", "ports": ports.collect::<Vec<_>>() },
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": pod.addresses.ipv4,
            "podIPs": pod.addresses.both().map(|ip| json!({ "ip": ip })),
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn service(service: &ServiceRecord) -> Value {
    let spec = &service.spec;
    let addresses = service.addresses.both();
    let ports = spec.ports.iter().map(|port| {
        let target = port.target.parse::<u16>().map_or(json!(port.target), |number| json!(number));
        json!({
            "name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": target,
        })
    });
    let affinity =
        spec.affinity_seconds.map(|seconds| json!({ "clientIP": { "timeoutSeconds": seconds } }));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": spec.name, "namespace": spec.namespace },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4", "IPv6"],
            "selector": spec.selector,
            "ports": ports.collect::<Vec<_>>(),
            "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" },
            "sessionAffinityConfig": affinity,
        },
    })
}
