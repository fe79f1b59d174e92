use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Labels, Name, Origin, Selector};

/// v1 Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels, always with `kubernetes.io/metadata.name`.
    pub labels: Labels,
    /// What its labels and annotations say about its pods being in the mesh; none if they say
    /// nothing.
    pub enrolled: Option<bool>,
}

/// v1 Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// `status.addresses` that are addresses; the first of a family is where its proxy listens.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// Label of a node with its zone.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// v1 Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: Name,
    /// `metadata.uid`, by which its cgroup is found.
    pub uid: Arc<str>,
    /// Its labels, which the pods of one template have in common.
    pub labels: Arc<Labels>,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: Arc<str>,
    /// `spec.serviceAccountName`, `default` if absent.
    pub service_account: Arc<str>,
    /// `status.podIPs`; of a host-network pod the node's.
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Named container ports (`spec.containers[].ports[]`, init sidecars too).
    pub named_ports: Vec<NamedPort>,
    /// `status.phase` is `Succeeded` or `Failed`: its addresses are free again.
    pub finished: bool,
    /// What its labels and annotations say about being in the mesh (`weft.dev/mesh`, and what
    /// other meshes call the same); none if they say nothing.
    pub enrolled: Option<bool>,
    /// `weft.dev/accelerate` is not `"false"`.
    pub accelerate: bool,
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// v1 ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Namespace and name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
}

/// v1 Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
    /// `spec.selector`; none for a service whose endpoints others write.
    pub selector: Option<Selector>,
    /// `spec.clusterIPs`; empty for a headless service or an ExternalName.
    pub addresses: Vec<IpAddr>,
    /// `spec.externalIPs`, and the load balancer's addresses that lead to nodes. Pods reach the
    /// service there as well.
    pub external: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`, in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Where it was said.
    pub origin: Origin,
}

/// One of `spec.ports` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port of the service.
    pub port: u16,
    /// Port of the pods.
    pub target: PortRef,
    /// `nodePort`: the port of every node's addresses.
    pub node_port: Option<u16>,
}

/// A port by number or by the name that a pod gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRef {
    /// A number.
    Number(u16),
    /// A name of a container port.
    Name(Arc<str>),
}

/// discovery.k8s.io/v1 EndpointSlice. A Service without any slice of its own has the endpoints
/// that its selector finds among the pods (standalone mode has no controller to write slices).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: Name,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// By name of the service's port.
    pub ports: BTreeMap<Arc<str>, (Protocol, u16)>,
    /// The endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its addresses (the first is used).
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`, true if absent.
    pub ready: bool,
    /// `conditions.serving`, as `ready` if absent.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forZones`: the zones that it is to serve.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes`: the nodes that it is to serve.
    pub nodes: Vec<Arc<str>>,
}

/// IP protocols that policy tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// ICMP and, for IPv6, ICMPv6. It has no ports; no rule that names ports covers it.
    Icmp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IANA's number for it, over IPv4.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}
