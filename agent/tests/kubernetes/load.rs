//! Objects of a cluster of some size.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

const NODES: usize = 100;
const APPS: usize = 10;

/// How much of everything there is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub namespaces: usize,
    pub pods: usize,
    pub services: usize,
    pub policies: usize,
}

fn address(first: u32, index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first + index as u32)
}

impl Load {
    /// In the order in which they can be made: those that others need come first.
    pub fn objects(self) -> [Vec<Value>; 2] {
        let namespaces = (0..self.namespaces).map(|index| {
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace(index), "labels": {"weft.dev/mesh": "enabled"}},
            })
        });
        let nodes = (0..NODES).map(|index| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{index}")},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": address(0xac10_0001, index)},
                ]},
            })
        });
        let pods = (0..self.pods).map(|index| self.pod(index));
        let services = (0..self.services).flat_map(|index| self.service(index));
        let policies = (0..self.policies).map(|index| self.policy(index, 8080));
        [namespaces.chain(nodes).collect(), services.chain(policies).chain(pods).collect()]
    }

    fn pod(self, index: usize) -> Value {
        let app = index / self.namespaces % APPS;
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("app-{app}-7c5ddbdf54-{index:05}"),
                "namespace": namespace(index % self.namespaces),
                "labels": {
                    "app": format!("app-{app}"), "pod-template-hash": "7c5ddbdf54",
                    "app.kubernetes.io/name": format!("app-{app}"), "version": "v1",
                },
            },
            "spec": {
                "nodeName": format!("node-{}", index / self.namespaces % NODES),
                "serviceAccountName": "default", "automountServiceAccountToken": false,
                "containers": [{
                    "name": "app", "image": "registry.example/shop/app:1.2.3",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [{"name": "LOG", "value": "info"}],
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                }],
            },
            "status": {
                "phase": "Running",
                "podIP": address(0x0a00_0001, index),
                "podIPs": [{"ip": address(0x0a00_0001, index)}],
            },
        })
    }

    /// A service with a slice of ten of the pods.
    fn service(self, index: usize) -> [Value; 2] {
        let (name, namespace) = (format!("service-{index}"), namespace(index % self.namespaces));
        let each = (self.pods / self.services.max(1)).clamp(1, 100);
        let endpoints: Vec<Value> = (0..each)
            .map(|number| {
                let pod = (index * each + number) % self.pods;
                json!({
                    "addresses": [address(0x0a00_0001, pod)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("node-{}", pod / self.namespaces % NODES),
                })
            })
            .collect();
        [
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
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

    /// A policy for an app: one other may reach it, at a port.
    pub fn policy(self, index: usize, port: u16) -> Value {
        let app = index / self.namespaces % APPS;
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {
                "name": format!("policy-{index}"), "namespace": namespace(index % self.namespaces),
            },
            "spec": {
                "podSelector": {"matchLabels": {"app": format!("app-{app}")}},
                "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [{"podSelector": {"matchLabels": {
                        "app": format!("app-{}", (app + 1) % APPS),
                    }}}],
                    "ports": [{"port": port}],
                }],
            },
        })
    }
}

fn namespace(index: usize) -> String {
    format!("load-{index}")
}
