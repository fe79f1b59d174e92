use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::schema::{CidrRule, ServiceRule};
use super::shape::SideFields;
use super::{ports, selector};
use crate::dialect::path::Path;
use crate::dialect::principal;
use crate::dialect::reading::Reading;
use crate::dialect::selector::{canonical, cidr};
use crate::mesh::{Direction, Effect, Needs, Peer, PortMatch, Ports, Protocol, Rule, Selector};

/// An item of `ingress`, `egress`, `ingressDeny` or `egressDeny`.
pub(super) struct Side<'a> {
    pub at: &'a Path,
    pub direction: Direction,
    pub effect: Effect,
    /// Whether there is no unknown field in it.
    pub is_known: bool,
    pub fields: SideFields,
}

/// What names the peers of a rule.
struct Peers {
    /// As in [`Rule::peers`].
    matched: Option<Vec<Peer>>,
    is_supported: bool,
}

/// The rules that an item stands for: one, or one for each of `toPorts` where some need more
/// than L4, and one more for `fromRequires`.
pub(super) fn read_rule(reading: &mut Reading<'_>, side: Side<'_>) -> Vec<Rule> {
    let Side { at, direction, effect, is_known, fields } = side;
    let mut rules: Vec<Rule> = requirement(reading, at, direction, &fields).into_iter().collect();
    let has_ports = fields.ports.as_ref().is_some_and(|ports| !ports.is_empty());
    let has_icmps = is_set(fields.icmps.as_ref());
    let peers = peers(reading, at, &fields, has_ports || has_icmps);
    let authenticates = authenticates(reading, at, &fields);

    let is_supported = peers.is_supported && is_known && !authenticates;
    // A denying rule denies whatever its peers may have been.
    let widened = effect == Effect::Deny && !(peers.is_supported && is_known);
    let matched = if widened { None } else { peers.matched };
    let is_proof_needed = effect == Effect::Allow
        && fields.identities.1.as_ref().is_some_and(|list| !list.is_empty());
    let rule = |reading: &mut Reading<'_>, at: &Path, ports, needs: Needs| Rule {
        origin: reading.origin(at),
        direction,
        effect,
        peers: matched.clone(),
        ports: if is_proof_needed { tcp_only(reading, at, ports) } else { ports },
        needs: if is_supported { needs } else { Needs::Unsupported },
    };

    if has_ports && has_icmps {
        reading.error(
            &at.field("icmps"),
            "stands beside toPorts; make two rules of it, each with its own '-'",
        );
    }
    if has_icmps {
        let icmps_at = at.field("icmps");
        let ports = ports::icmps(reading, &icmps_at, effect);
        rules.push(rule(reading, &icmps_at, Some(ports), Needs::Unsupported));
    } else if has_ports {
        let ports_at = at.field("toPorts");
        let listed = fields.ports.as_deref().unwrap_or_default();
        let mut plain = Vec::new();
        let mut has_plain = false;
        for (index, port_rule) in listed.iter().enumerate() {
            let port_at = ports_at.index(index);
            let (ports, needs) = ports::read(reading, &port_at, port_rule);
            if needs == Needs::L4 {
                has_plain = true;
                plain.extend(ports);
            } else {
                rules.push(rule(reading, &port_at, Some(ports), needs));
            }
        }
        if has_plain {
            rules.push(rule(reading, at, Some(plain), Needs::L4));
        }
    } else {
        rules.push(rule(reading, at, None, Needs::L4));
    }
    rules
}

/// Identities are proven over TCP alone, so a rule that allows by them allows nothing else.
fn tcp_only(
    reading: &mut Reading<'_>,
    at: &Path,
    ports: Option<Vec<PortMatch>>,
) -> Option<Vec<PortMatch>> {
    let Some(mut ports) = ports else {
        return Some(vec![PortMatch { protocol: Some(Protocol::Tcp), ports: Ports::All }]);
    };
    let before = ports.len();
    ports.retain(|port| matches!(port.protocol, None | Some(Protocol::Tcp)));
    if ports.len() < before {
        reading.warning(
            at,
            "identities are proven over TCP alone, so nothing else is allowed by them; name the \
             peers of other protocols by their labels",
        );
    }
    ports.iter_mut().for_each(|port| port.protocol = Some(Protocol::Tcp));
    Some(ports)
}

/// The peers that an item names. Naming none, it means all where it names ports, and none where
/// it does not; a list that is there and empty means none.
fn peers(reading: &mut Reading<'_>, at: &Path, fields: &SideFields, has_ports: bool) -> Peers {
    let present = present(fields);
    if let [first, second, ..] = present[..] {
        reading.error(
            &at.field(second),
            format_args!("stands beside {first}; make two rules of it, each with its own '-'"),
        );
    }
    let mut is_supported = true;
    for (field, value) in &fields.unsupported {
        if is_set(value.as_ref()) {
            is_supported = false;
            reading.warning(
                &at.field(field),
                "is not supported; what it stands for is denied until it is",
            );
        }
    }

    let mut peers = Vec::new();
    let mut take = |peer: Option<Peer>| match peer {
        Some(peer) => peers.push(peer),
        None => is_supported = false,
    };
    let list_at = at.field(fields.endpoints.0);
    for (index, labels) in fields.endpoints.1.iter().flatten().enumerate() {
        take(selector::peer(reading, &list_at.index(index), labels));
    }
    let list_at = at.field(fields.identities.0);
    for (index, text) in fields.identities.1.iter().flatten().enumerate() {
        take(principal::principal(reading, &list_at.index(index), text).map(Peer::Identity));
    }
    let list_at = at.field(fields.cidr.0);
    for (index, text) in fields.cidr.1.iter().flatten().enumerate() {
        take(address_or_cidr(reading, &list_at.index(index), text));
    }
    let list_at = at.field(fields.cidr_set.0);
    for (index, rule) in fields.cidr_set.1.iter().flatten().enumerate() {
        take(cidr_rule(reading, &list_at.index(index), rule));
    }
    let list_at = at.field(fields.entities.0);
    for (index, name) in fields.entities.1.iter().flatten().enumerate() {
        let entity = selector::entity(name);
        if entity.is_none() {
            reading.error(
                &list_at.index(index),
                format_args!(
                    "\"{name}\" is no entity; entities are all, world, world-ipv4, world-ipv6, \
                     cluster, host, remote-node, kube-apiserver, unmanaged, health, init, \
                     ingress, none"
                ),
            );
        }
        take(entity.map(Peer::Entity));
    }
    let list_at = at.field(fields.services.0);
    for (index, rule) in fields.services.1.iter().flatten().enumerate() {
        take(service(reading, &list_at.index(index), rule));
    }

    let names_none = present.is_empty() && !names_empty_list(fields) && is_supported;
    let matched = (!(names_none && has_ports)).then_some(peers);
    Peers { matched, is_supported }
}

/// The fields that name peers and are not empty. Cilium takes only one of them in an item.
fn present(fields: &SideFields) -> Vec<&'static str> {
    let lists = [
        (fields.endpoints.0, fields.endpoints.1.as_ref().map_or(0, Vec::len)),
        (fields.identities.0, fields.identities.1.as_ref().map_or(0, Vec::len)),
        (fields.cidr.0, fields.cidr.1.as_ref().map_or(0, Vec::len)),
        (fields.cidr_set.0, fields.cidr_set.1.as_ref().map_or(0, Vec::len)),
        (fields.entities.0, fields.entities.1.as_ref().map_or(0, Vec::len)),
        (fields.services.0, fields.services.1.as_ref().map_or(0, Vec::len)),
    ];
    let unsupported = fields.unsupported.iter();
    let unsupported = unsupported.map(|(name, value)| (*name, is_set(value.as_ref()).into()));
    lists.into_iter().chain(unsupported).filter(|(_, len)| *len > 0).map(|(name, _)| name).collect()
}

fn names_empty_list(fields: &SideFields) -> bool {
    let is_empty_value = |value: &Option<Value>| {
        value.as_ref().is_some_and(|value| value.as_array().is_some_and(Vec::is_empty))
    };
    fields.endpoints.1.as_ref().is_some_and(Vec::is_empty)
        || fields.identities.1.as_ref().is_some_and(Vec::is_empty)
        || fields.cidr.1.as_ref().is_some_and(Vec::is_empty)
        || fields.cidr_set.1.as_ref().is_some_and(Vec::is_empty)
        || fields.entities.1.as_ref().is_some_and(Vec::is_empty)
        || fields.services.1.as_ref().is_some_and(Vec::is_empty)
        || fields.unsupported.iter().any(|(_, value)| is_empty_value(value))
}

fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

/// `fromCIDR` takes a single address too.
fn address_or_cidr(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<Peer> {
    let block = match text.parse::<std::net::IpAddr>() {
        Ok(address) => Some(canonical(IpNet::from(address))),
        Err(_) => cidr(reading, at, text),
    };
    Some(Peer::Cidr { cidr: block?, except: Vec::new() })
}

fn cidr_rule(reading: &mut Reading<'_>, at: &Path, rule: &CidrRule) -> Option<Peer> {
    let groups = [
        ("cidrGroupRef", rule.cidr_group_ref.is_some()),
        ("cidrGroupSelector", rule.cidr_group_selector.is_some()),
    ];
    if let Some((field, _)) = groups.into_iter().find(|(_, is_set)| *is_set) {
        reading.warning(
            &at.field(field),
            "CIDR groups are not supported; what holds this allows nothing. Write the CIDRs out",
        );
        return None;
    }
    let Some(text) = &rule.cidr else {
        reading.error(&at.field("cidr"), "missing; an item of a CIDR set has a cidr");
        return None;
    };
    let block = cidr(reading, &at.field("cidr"), text);
    let mut except = Vec::new();
    for (index, text) in rule.except.iter().flatten().enumerate() {
        let at = at.field("except").index(index);
        let Some(part) = cidr(reading, &at, text) else { continue };
        if block.is_some_and(|block| !block.contains(&part)) {
            reading.error(&at, format_args!("{text} is no part of the block it is left out of"));
        }
        except.push(part);
    }
    Some(Peer::Cidr { cidr: block?, except })
}

fn service(reading: &mut Reading<'_>, at: &Path, rule: &ServiceRule) -> Option<Peer> {
    let namespace = |name: &Option<String>| {
        name.as_deref().filter(|name| !name.is_empty()).map(Arc::<str>::from)
    };
    match (&rule.by_name, &rule.by_labels) {
        (Some(service), None) => {
            let Some(name) = service.service_name.as_deref().filter(|name| !name.is_empty()) else {
                let at = at.fields(&["k8sService", "serviceName"]);
                reading.error(&at, "missing; it is the service's name");
                return None;
            };
            Some(Peer::Services {
                namespace: namespace(&service.namespace),
                name: Some(name.into()),
                labels: Selector::EVERYTHING,
            })
        }
        (None, Some(service)) => {
            let at = at.fields(&["k8sServiceSelector", "selector"]);
            let Some(labels) = &service.selector else {
                reading.error(&at, "missing; it selects services by their labels");
                return None;
            };
            Some(Peer::Services {
                namespace: namespace(&service.namespace),
                name: None,
                labels: selector::services(reading, &at, labels)?,
            })
        }
        _ => {
            reading.error(at, "takes one of k8sService and k8sServiceSelector");
            None
        }
    }
}

/// `fromRequires` and `toRequires` bind every rule on the pods: what does not meet them is
/// denied. (Cilium binds only `fromEndpoints` by it; here pods that an entity or a CIDR matches
/// are bound too.)
fn requirement(
    reading: &mut Reading<'_>,
    at: &Path,
    direction: Direction,
    fields: &SideFields,
) -> Option<Rule> {
    let (name, Some(required)) = &fields.requires else { return None };
    if required.is_empty() {
        return None;
    }
    let at = at.field(name);
    reading.note(&at, "newer versions of Cilium do not know it any more; use a denying rule");
    let mut peers = Some(Vec::new());
    for (index, labels) in required.iter().enumerate() {
        match (&mut peers, selector::unmet(reading, &at.index(index), labels)) {
            (Some(peers), Some(unmet)) => peers.extend(unmet),
            // What it asks for is not known, so nobody meets it.
            _ => peers = None,
        }
    }
    Some(Rule {
        origin: reading.origin(&at),
        direction,
        effect: Effect::Deny,
        needs: if peers.is_some() { Needs::L4 } else { Needs::Unsupported },
        peers,
        ports: None,
    })
}

fn authenticates(reading: &mut Reading<'_>, at: &Path, fields: &SideFields) -> bool {
    let mode = fields.authentication.as_ref().map(|authentication| authentication.mode.as_deref());
    match mode {
        None | Some(Some("disabled")) => false,
        Some(_) => {
            reading.warning(
                &at.field("authentication"),
                "Cilium's mutual authentication is not supported; the rule allows nothing. Use a \
                 PeerAuthentication",
            );
            true
        }
    }
}
