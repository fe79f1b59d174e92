use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::protocol;
use super::workload::not_a_port_name;
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::dialect::selector::{self, selector};
use crate::mesh::{
    Dialect, Direction, Effect, NAMESPACE_NAME_LABEL, Needs, Peer, Policy, PortMatch, Ports,
    Resource, Rule, Selector, Workloads,
};

pub(in crate::dialect) fn network_policy(reading: &mut Reading<'_>) -> Option<Resource> {
    let policy: v1::NetworkPolicy = reading.decode(Unknown::Narrows)?;
    let at = Path::ROOT.field("spec");
    let Some(spec) = policy.spec else {
        reading.error(&at, "missing; a NetworkPolicy has at least `spec: {podSelector: {}}`");
        return None;
    };
    let pods = spec.pod_selector.clone().unwrap_or_default();
    let pods = selector(reading, &at.field("podSelector"), &pods);
    let (ingress, egress) = directions(reading, &at, &spec);

    let mut rules = Vec::new();
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = at.field("ingress").index(index);
        let ports = rule.ports.as_deref().unwrap_or_default();
        let peers = rule.from.as_deref().unwrap_or_default();
        rules.push(self::rule(reading, &at, Direction::Ingress, (peers, "from"), ports));
    }
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let at = at.field("egress").index(index);
        let ports = rule.ports.as_deref().unwrap_or_default();
        let peers = rule.to.as_deref().unwrap_or_default();
        rules.push(self::rule(reading, &at, Direction::Egress, (peers, "to"), ports));
    }
    rules.retain(|rule| match rule.direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    });
    Some(Resource::from(Policy {
        origin: reading.origin(&at),
        subject: Workloads {
            namespace: namespace_selector(reading),
            pod: pods,
            service_account: Selector::EVERYTHING,
        },
        isolates_ingress: ingress,
        isolates_egress: egress,
        dialect: Dialect::Kubernetes,
        rules,
    }))
}

/// A policy that stands for one that cannot be read: it allows nothing in the directions that
/// the other may have isolated. A NetworkPolicy can do no more than that.
pub(in crate::dialect) fn deny_fallback(reading: &mut Reading<'_>) -> Vec<Resource> {
    let at = Path::ROOT.field("spec");
    let pods = readable_selector(reading, &at.field("podSelector"));
    vec![Resource::from(Policy {
        origin: reading.origin(&at),
        subject: Workloads {
            namespace: namespace_selector(reading),
            pod: pods.unwrap_or_default(),
            service_account: Selector::EVERYTHING,
        },
        isolates_ingress: true,
        isolates_egress: true,
        dialect: Dialect::Kubernetes,
        rules: Vec::new(),
    })]
}

/// The selector of a document that is not in force, if it can be trusted.
fn readable_selector(reading: &mut Reading<'_>, at: &Path) -> Option<Selector> {
    if reading.is_suspect(at) || !reading.get(&at.parent()?)?.is_object() {
        return None;
    }
    let labels = match reading.get(at) {
        None => LabelSelector::default(),
        Some(value) => Option::<LabelSelector>::deserialize(value).ok()?.unwrap_or_default(),
    };
    reading.quietly(|reading| Some(selector(reading, at, &labels)))
}

fn namespace_selector(reading: &Reading<'_>) -> Selector {
    Selector::label(NAMESPACE_NAME_LABEL, &reading.object.name.namespace)
}

/// Whether ingress and egress are isolated. Reports rules of a direction that is not.
fn directions(reading: &mut Reading<'_>, at: &Path, spec: &v1::NetworkPolicySpec) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()));
    }
    let types_at = at.field("policyTypes");
    if types.len() > 2 {
        reading.error(&types_at, "at most two are allowed: Ingress and Egress");
    }
    let (mut ingress, mut egress) = (false, false);
    for (index, policy_type) in types.iter().enumerate() {
        match policy_type.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => reading.error(
                &types_at.index(index),
                format_args!("\"{other}\" is neither Ingress nor Egress"),
            ),
        }
    }
    let has_ingress = spec.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
    let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    if has_ingress && !ingress {
        reading.warning(
            &at.field("ingress"),
            "has no effect, for policyTypes leaves Ingress out; add it there, or remove the rules",
        );
    }
    if has_egress && !egress {
        reading.warning(
            &at.field("egress"),
            "has no effect, for policyTypes leaves Egress out; add it there, or remove the rules",
        );
    }
    (ingress, egress)
}

fn rule(
    reading: &mut Reading<'_>,
    at: &Path,
    direction: Direction,
    (peers, peers_field): (&[v1::NetworkPolicyPeer], &str),
    ports: &[v1::NetworkPolicyPort],
) -> Rule {
    let peers_at = at.field(peers_field);
    let mut matched_peers = Vec::new();
    for (index, peer) in peers.iter().enumerate() {
        matched_peers.extend(self::peer(reading, &peers_at.index(index), peer));
    }
    let ports_at = at.field("ports");
    let mut matched_ports = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        matched_ports.extend(port_match(reading, &ports_at.index(index), port));
    }
    let spec = Path::ROOT.field("spec");
    let is_known = !reading.is_poisoned(at, &spec, ["ingress", "egress"]);
    Rule {
        origin: reading.origin(at),
        direction,
        effect: Effect::Allow,
        // Empty and absent are the same to Kubernetes: everything.
        peers: (!peers.is_empty()).then_some(matched_peers),
        ports: (!ports.is_empty()).then_some(matched_ports),
        needs: if is_known { Needs::L4 } else { Needs::Unsupported },
    }
}

fn peer(reading: &mut Reading<'_>, at: &Path, peer: &v1::NetworkPolicyPeer) -> Option<Peer> {
    let has_selector = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    if let Some(block) = &peer.ip_block {
        if has_selector {
            reading.error(
                at,
                "ipBlock stands beside a selector; make two items of it, each with its own '-'",
            );
            return None;
        }
        return ip_block(reading, &at.field("ipBlock"), block);
    }
    if !has_selector {
        reading.error(
            at,
            "names no peer; it takes podSelector, namespaceSelector or ipBlock (`podSelector: {}` \
             for every pod of the namespace)",
        );
        return None;
    }
    let namespace = match &peer.namespace_selector {
        Some(labels) => selector(reading, &at.field("namespaceSelector"), labels),
        None => namespace_selector(reading),
    };
    let pod = match &peer.pod_selector {
        Some(labels) => selector(reading, &at.field("podSelector"), labels),
        None => Selector::EVERYTHING,
    };
    Some(Peer::Workloads(Workloads { namespace, pod, service_account: Selector::EVERYTHING }))
}

fn ip_block(reading: &mut Reading<'_>, at: &Path, block: &v1::IPBlock) -> Option<Peer> {
    let cidr = selector::cidr(reading, &at.field("cidr"), &block.cidr);
    let mut except = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let at = at.field("except").index(index);
        let Some(block) = selector::cidr(reading, &at, text) else { continue };
        if cidr.is_some_and(|cidr| !is_strict_part(&cidr, &block)) {
            reading.error(
                &at,
                format_args!("{text} is no smaller part of the block it is left out of"),
            );
        }
        except.push(block);
    }
    Some(Peer::Cidr { cidr: cidr?, except })
}

fn is_strict_part(whole: &IpNet, part: &IpNet) -> bool {
    whole.contains(part) && whole.prefix_len() < part.prefix_len()
}

fn port_match(
    reading: &mut Reading<'_>,
    at: &Path,
    port: &v1::NetworkPolicyPort,
) -> Option<PortMatch> {
    let protocol = protocol(reading, &at.field("protocol"), port.protocol.as_deref());
    let end_at = at.field("endPort");
    let ports = match (&port.port, port.end_port) {
        (None, None) => Some(Ports::All),
        (None, Some(_)) => {
            reading.error(&end_at, "is only allowed beside a numeric port; add `port`");
            None
        }
        (Some(IntOrString::String(name)), end) => {
            if !selector::is_port_name(name) {
                reading.error(&at.field("port"), not_a_port_name(name));
            }
            if end.is_some() {
                reading.error(&end_at, "is only allowed beside a numeric port; remove it");
            }
            Some(Ports::Named(Arc::from(name.as_str())))
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = selector::port(reading, &at.field("port"), i64::from(*first));
            let last = match end {
                Some(end) => selector::port(reading, &end_at, i64::from(end)),
                None => first,
            };
            if let (Some(first), Some(last)) = (first, last)
                && last < first
            {
                reading.error(&end_at, format_args!("{last} is below port {first}; swap them"));
            }
            first.zip(last).map(|(first, last)| Ports::Range(first, last))
        }
    };
    Some(PortMatch { protocol: Some(protocol?), ports: ports? })
}
