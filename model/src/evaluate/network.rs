//! NetworkPolicy, CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, MeshPolicy and
//! ClusterMeshPolicy together.
//!
//! Kubernetes: "The effects of those policies' rules combine additively. ... a pod is isolated
//! for egress if there is any NetworkPolicy that both selects the pod and has Egress in its
//! policyTypes". Cilium: "Deny policies take precedence over allow policies, regardless of
//! whether they are a Cilium Network Policy, a Clusterwide Cilium Network Policy or even a
//! Kubernetes Network Policy."

use std::net::IpAddr;

use ipnet::IpNet;
use weft_common::Reason;

use super::authorization::string_matches;
use super::party::{End, Kind};
use super::{Connection, Outcome};
use crate::mesh::{
    Dialect, Direction, Effect, Entity, Labels, Mesh, Name, Needs, Peer, Pod, Policy, PortMatch,
    Ports, Protocol, Rule, SERVICE_ACCOUNT_LABEL, Workloads,
};

/// What the L3/L4 policies of `pod` say of its traffic with `peer` in one direction.
pub(super) fn judge(
    mesh: &Mesh,
    pod: &Pod,
    direction: Direction,
    peer: &End,
    connection: &Connection,
) -> Outcome {
    let acting = acting_on(mesh, pod);
    let rules =
        || acting.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (*policy, rule)));
    let own_node = peer.is_node(&pod.node);
    let isolated = acting.iter().any(|policy| isolates(policy, direction));
    if direction == Direction::Ingress && own_node {
        let restricted = super::is_restricted(mesh, pod);
        return Outcome::because(if restricted { Reason::OwnNode } else { Reason::Unrestricted });
    }

    let matching: Vec<&Rule> = rules()
        .filter(|(policy, rule)| {
            rule.direction == direction
                && peer_matches(mesh, policy, rule, pod, peer, connection)
                && port_matches(rule, direction, pod, peer, connection)
        })
        .map(|(_, rule)| rule)
        .collect();
    if let Some(rule) = matching.iter().find(|rule| rule.effect == Effect::Deny) {
        return Outcome::of(unmet(rule.needs).unwrap_or(Reason::RuleDenies), &rule.origin);
    }
    if !isolated {
        return Outcome::UNRESTRICTED;
    }
    if let Some(rule) = matching.iter().find(|rule| rule.needs == Needs::L4) {
        return Outcome::of(Reason::Rule, &rule.origin);
    }
    // Kubernetes lets a pod and its node talk; Cilium judges what a pod sends to its node.
    let default_deny = acting.iter().find(|policy| {
        isolates(policy, direction) && !(own_node && policy.dialect == Dialect::Kubernetes)
    });
    let Some(default_deny) = default_deny else {
        return Outcome::because(Reason::OwnNode);
    };
    match matching.first() {
        Some(rule) => Outcome::of(unmet(rule.needs).unwrap_or(Reason::NoRule), &rule.origin),
        None => Outcome::of(Reason::NoRule, &default_deny.origin),
    }
}

/// Whether any policy might refuse something in this direction.
pub(super) fn restricts(mesh: &Mesh, pod: &Pod, direction: Direction) -> bool {
    acting_on(mesh, pod).iter().any(|policy| {
        let denies = |rule: &Rule| rule.direction == direction && rule.effect == Effect::Deny;
        isolates(policy, direction) || policy.rules.iter().any(denies)
    })
}

fn acting_on<'a>(mesh: &'a Mesh, pod: &Pod) -> Vec<&'a Policy> {
    let all = mesh.policies.values().flatten().map(|policy| &**policy);
    all.filter(|policy| selects(mesh, &policy.subject, pod)).collect()
}

/// Whether a pod is one of these workloads.
pub(super) fn selects(mesh: &Mesh, workloads: &Workloads, pod: &Pod) -> bool {
    let account = Labels::from([(SERVICE_ACCOUNT_LABEL.into(), pod.service_account.clone())]);
    workloads.namespace.matches(&mesh.namespace_labels(&pod.name.namespace))
        && workloads.pod.matches(&pod.labels)
        && workloads.service_account.matches(&account)
}

/// Why a rule that has these needs cannot be kept.
pub(super) fn unmet(needs: Needs) -> Option<Reason> {
    match needs {
        Needs::L4 => None,
        Needs::Http => Some(Reason::NeedsHttp),
        Needs::Unsupported => Some(Reason::Unsupported),
    }
}

/// Whether an address is in a block. A block of IPv4-mapped addresses is the IPv4 block.
pub(super) fn contains(block: &IpNet, address: IpAddr) -> bool {
    if let IpNet::V6(v6) = block
        && let Some(v4) = v6.network().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(mapped) = IpNet::new(v4.into(), length)
    {
        return mapped.contains(&address.to_canonical());
    }
    block.contains(&address.to_canonical())
}

fn isolates(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.isolates_ingress,
        Direction::Egress => policy.isolates_egress,
    }
}

fn peer_matches(
    mesh: &Mesh,
    policy: &Policy,
    rule: &Rule,
    pod: &Pod,
    peer: &End,
    connection: &Connection,
) -> bool {
    let Some(wanted) = &rule.peers else { return true };
    wanted.iter().any(|wanted| match wanted {
        Peer::Workloads(workloads) => {
            peer.pod().is_some_and(|other| selects(mesh, workloads, other))
        }
        Peer::Cidr { cidr, except } => {
            let eligible =
                policy.dialect == Dialect::Kubernetes || matches!(peer.kind, Kind::World);
            eligible
                && peer.address.is_some_and(|address| {
                    contains(cidr, address) && !except.iter().any(|out| contains(out, address))
                })
        }
        Peer::Entity(entity) => entity_matches(mesh, *entity, pod, peer),
        Peer::Services { namespace, name, labels } => mesh.services.values().any(|service| {
            namespace.as_ref().is_none_or(|wanted| *wanted == service.name.namespace)
                && name.as_ref().is_none_or(|wanted| *wanted == service.name.name)
                && labels.matches(&service.labels)
                && serves(mesh, &service.name, peer)
        }),
        Peer::Identity(wanted) => peer.pod().is_some_and(|other| {
            let counts = match (rule.effect, rule.direction) {
                (Effect::Deny, _) => true,
                (Effect::Allow, Direction::Ingress) => connection.proven,
                (Effect::Allow, Direction::Egress) => mesh.is_enrolled(other),
            };
            counts && string_matches(wanted, &mesh.principal(other))
        }),
    })
}

fn entity_matches(mesh: &Mesh, entity: Entity, pod: &Pod, peer: &End) -> bool {
    let world = matches!(peer.kind, Kind::World);
    match entity {
        Entity::All => true,
        Entity::World => world,
        Entity::WorldIpv4 => world && peer.address.is_some_and(|address| address.is_ipv4()),
        Entity::WorldIpv6 => world && peer.address.is_some_and(|address| address.is_ipv6()),
        Entity::Cluster => !world,
        Entity::Host => peer.is_node(&pod.node),
        Entity::RemoteNode => matches!(peer.kind, Kind::Node(_)) && !peer.is_node(&pod.node),
        Entity::KubeApiserver => {
            let name = Name { namespace: "default".into(), name: "kubernetes".into() };
            serves(mesh, &name, peer)
        }
        Entity::Unmanaged => peer.pod().is_some_and(|other| !mesh.is_enrolled(other)),
        Entity::None => false,
    }
}

/// Whether the peer's address is an endpoint of the service, at whatever port.
fn serves(mesh: &Mesh, service: &Name, peer: &End) -> bool {
    let (Some(service), Some(address)) = (mesh.services.get(service), peer.address) else {
        return false;
    };
    service
        .ports
        .iter()
        .any(|port| mesh.endpoints(service, port).iter().any(|endpoint| endpoint.ip() == address))
}

fn port_matches(
    rule: &Rule,
    direction: Direction,
    pod: &Pod,
    peer: &End,
    connection: &Connection,
) -> bool {
    let Some(wanted) = &rule.ports else { return true };
    let destination = match direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => peer.pod().map(|pod| &**pod),
    };
    wanted.iter().any(|wanted| one_port_matches(wanted, destination, connection))
}

fn one_port_matches(wanted: &PortMatch, destination: Option<&Pod>, c: &Connection) -> bool {
    let protocol = match wanted.protocol {
        Some(protocol) => protocol == c.protocol,
        None => c.protocol != Protocol::Icmp,
    };
    let has_ports = c.protocol != Protocol::Icmp;
    protocol
        && match &wanted.ports {
            Ports::All => true,
            Ports::Range(first, last) => has_ports && (*first..=*last).contains(&c.port),
            Ports::Named(name) => destination.is_some_and(|pod| {
                has_ports
                    && pod.named_ports.iter().any(|named| {
                        named.name == *name && named.protocol == c.protocol && named.port == c.port
                    })
            }),
        }
}
