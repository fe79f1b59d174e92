//! Objects of a cluster of some size, without processes.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Nodes that the pods are spread over, the real ones among them.
const NODES: usize = 100;
const NAMESPACES: usize = 100;
const APPS: usize = 10;
const PODS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 16, 0);

/// Where a service that is to be dialled leads.
pub struct Backend {
    /// A real pod's.
    pub address: Ipv4Addr,
    pub node: &'static str,
}

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub pods: usize,
    pub policies: usize,
}

/// What others need, to be made first.
pub fn namespaces_and_nodes(real_nodes: usize) -> impl Iterator<Item = Value> {
    let namespaces = (0..NAMESPACES).map(|index| {
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace(index), "labels": {"weft.dev/mesh": "enabled"}},
        })
    });
    let nodes = (real_nodes..NODES).map(|index| {
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node(index)},
            "status": {"addresses": [
                {"type": "InternalIP", "address": address(Ipv4Addr::new(172, 20, 0, 1), index)},
            ]},
        })
    });
    namespaces.chain(nodes)
}

impl Load {
    /// Pods and policies.
    pub fn objects(self) -> impl Iterator<Item = Value> {
        (0..self.policies).map(policy).chain((0..self.pods).map(pod))
    }

    /// A service, by its number, with its slice: of ten of the pods, or of the one that is given.
    pub fn service(self, index: usize, backend: Option<&Backend>) -> [Value; 2] {
        const EACH: usize = 10;
        let (name, namespace) = (format!("service-{index}"), namespace(index % NAMESPACES));
        let endpoint = |address: Ipv4Addr, node: &str| {
            json!({
                "addresses": [address], "nodeName": node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        let endpoints: Vec<Value> = match backend {
            Some(backend) => vec![endpoint(backend.address, backend.node)],
            None => (0..EACH)
                .map(|number| (index * EACH + number) % self.pods)
                .map(|pod| endpoint(address(PODS, pod), &node_of(pod)))
                .collect(),
        };
        [
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "clusterIP": service_address(index),
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                },
            }),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-1"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": endpoints,
            }),
        ]
    }
}

/// The address of a service, by its number.
pub fn service_address(index: usize) -> Ipv4Addr {
    address(SERVICES, index)
}

fn pod(index: usize) -> Value {
    let app = index / NAMESPACES % APPS;
    let address = address(PODS, index);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("app-{app}-7c5ddbdf54-{index:05}"),
            "namespace": namespace(index % NAMESPACES),
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": "7c5ddbdf54",
                "app.kubernetes.io/name": format!("app-{app}"), "version": "v1",
            },
        },
        "spec": {
            "nodeName": node_of(index),
            "serviceAccountName": "default", "automountServiceAccountToken": false,
            "containers": [{
                "name": "app", "image": "registry.example/shop/app:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "LOG", "value": "info"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }],
        },
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

/// Another app may reach an app.
fn policy(index: usize) -> Value {
    let app = index / NAMESPACES % APPS;
    let peer = (app + 1) % APPS;
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": format!("policy-{index}"), "namespace": namespace(index % NAMESPACES),
        },
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": format!("app-{peer}")}}}],
                "ports": [{"port": 8080}],
            }],
        },
    })
}

fn namespace(index: usize) -> String {
    format!("load-{index}")
}

fn node_of(pod: usize) -> String {
    node(pod / NAMESPACES % NODES)
}

/// The first ones are real: `node-0`, `node-1`.
fn node(index: usize) -> String {
    format!("node-{index}")
}

fn address(first: Ipv4Addr, index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + u32::try_from(index).unwrap_or_default())
}
