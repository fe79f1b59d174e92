//! The fields of Pods and Nodes (core/v1) that the mesh reads. The generated types have hundreds
//! more, which would be decoded for every pod of the cluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

/// Names of the fields below, for telling a wrong spelling from a field that is not read.
pub(super) const READ: &[&str] = &[
    "addresses",
    "containerPort",
    "containers",
    "hostNetwork",
    "initContainers",
    "metadata",
    "nodeName",
    "phase",
    "podCIDR",
    "podCIDRs",
    "podIP",
    "podIPs",
    "ports",
    "protocol",
    "restartPolicy",
    "serviceAccount",
    "serviceAccountName",
    "spec",
    "status",
];

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub metadata: ObjectMeta,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
    pub node_name: Option<String>,
    pub host_network: Option<bool>,
    pub service_account: Option<String>,
    pub service_account_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub restart_policy: Option<String>,
    pub ports: Option<Vec<ContainerPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub name: Option<String>,
    pub container_port: i32,
    pub protocol: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
}

#[derive(Deserialize)]
pub(super) struct PodIp {
    pub ip: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub metadata: ObjectMeta,
    pub spec: Option<NodeSpec>,
    pub status: Option<NodeStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    pub addresses: Option<Vec<NodeAddress>>,
}

#[derive(Deserialize)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub type_: String,
    pub address: String,
}
