use std::sync::Arc;

use ipnet::IpNet;

use super::{Origin, Protocol, Selector, StringMatch};

/// A policy at L3/L4: a NetworkPolicy, one `spec` of a Cilium policy, or a MeshPolicy.
///
/// All policies that select a pod act together, across dialects: in a direction in which one of
/// them asks for a default deny, only what some rule allows is allowed; what a denying rule
/// matches is denied, whatever allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The policy as a whole.
    pub origin: Origin,
    /// The pods it acts on.
    pub subject: Workloads,
    /// Whether what no rule allows to reach the pods is denied.
    pub isolates_ingress: bool,
    /// Whether what no rule allows to leave the pods is denied.
    pub isolates_egress: bool,
    /// How traffic with the pod's own node is taken where nothing else speaks of it.
    pub dialect: Dialect,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// Dialects differ in what they take as granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dialect {
    /// networking.k8s.io: traffic to and from the node where a pod runs is always allowed, and
    /// an `ipBlock` matches pods as well.
    Kubernetes,
    /// cilium.io and weft.dev: traffic from the pod's own node is always allowed, traffic to it
    /// is judged; a CIDR matches only what is neither a pod nor a node of the cluster.
    Cilium,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Allows it.
    Allow,
    /// Denies it, whatever else allows it.
    Deny,
}

/// A direction, seen from the pod that a policy acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

/// One rule of a policy. It matches where a peer and a port match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it was said, as `spec.ingress[0]`.
    pub origin: Origin,
    /// The direction that it speaks of.
    pub direction: Direction,
    /// What it does.
    pub effect: Effect,
    /// Any of these; none: every peer. An empty list matches no peer.
    pub peers: Option<Vec<Peer>>,
    /// Any of these; none: everything, ICMP included. An empty list matches no port.
    pub ports: Option<Vec<PortMatch>>,
    /// What the rule asks for beyond L3/L4. Where it is not `L4`, an allowing rule allows
    /// nothing, and a denying one denies all that its peers and ports match.
    pub needs: Needs,
}

/// What enforcing a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Needs {
    /// Addresses, identities, ports.
    L4,
    /// To read HTTP, which is kept and not enforced yet.
    Http,
    /// A field or value that Weft does not support.
    Unsupported,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Workloads(Workloads),
    /// Addresses. Pods and nodes are matched according to the policy's [`Dialect`].
    Cidr {
        /// The block.
        cidr: IpNet,
        /// Blocks in it that are left out.
        except: Vec<IpNet>,
    },
    /// A Cilium entity.
    Entity(Entity),
    /// The endpoints of services, at any port (`toServices`).
    Services {
        /// Namespace of the services; none: every namespace.
        namespace: Option<Arc<str>>,
        /// Name; none: any that the labels select.
        name: Option<Arc<str>>,
        /// Labels of the services.
        labels: Selector,
    },
    /// Pods by their principal, as `cluster.local/ns/default/sa/web`. What a rule takes for a
    /// peer's identity depends on what it does:
    /// - an allowing rule of ingress, on one that is proven;
    /// - an allowing rule of egress, on the one of a pod in the mesh that has the address that is
    ///   dialled: the path proves it before a byte of the application goes over;
    /// - a denying rule, on the one of the pod that has the address, proven or not, so that
    ///   nobody gets round it by not proving who they are.
    Identity(StringMatch),
}

impl Rule {
    /// Whether it tells a peer with a proven identity from one without.
    pub fn reads_proof(&self) -> bool {
        self.direction == Direction::Ingress
            && self.effect == Effect::Allow
            && self.peers.iter().flatten().any(|peer| matches!(peer, Peer::Identity(_)))
    }
}

/// Pods by their namespace's labels, their own, and their service account's name. All three
/// match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Workloads {
    /// On the namespace's labels; `kubernetes.io/metadata.name` is always among them.
    pub namespace: Selector,
    /// On the pod's labels.
    pub pod: Selector,
    /// On one label, `serviceaccount`, that holds the service account's name.
    pub service_account: Selector,
}

/// Key of the label that [`Workloads::service_account`] selects on.
pub const SERVICE_ACCOUNT_LABEL: &str = "serviceaccount";
/// Label with a namespace's name, which Kubernetes sets on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// `cilium.io/v2` entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entity {
    /// Everything.
    All,
    /// Everything outside the cluster (neither pod nor node).
    World,
    /// `world`, IPv4 only.
    WorldIpv4,
    /// `world`, IPv6 only.
    WorldIpv6,
    /// Pods and nodes of the cluster.
    Cluster,
    /// The pod's own node, and host-network pods on it.
    Host,
    /// The other nodes, and host-network pods on them.
    RemoteNode,
    /// The endpoints of the service `default/kubernetes`.
    KubeApiserver,
    /// Pods that are not in the mesh.
    Unmanaged,
    /// Nothing that there is in Weft (`health`, `init`, `ingress`): matches nothing.
    None,
}

/// A port or range of ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// None: TCP, UDP and SCTP.
    pub protocol: Option<Protocol>,
    /// Which ports.
    pub ports: Ports,
}

/// Ports of a destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every port.
    All,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// What the destination pod calls so; matches nothing on what is no pod.
    Named(Arc<str>),
}
