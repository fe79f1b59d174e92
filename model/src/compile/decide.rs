//! The decision about one subject and one class of peers, for every protocol and port.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_common::{Decision, Reason};

use super::blocks::{Block, BlockSet};
use super::facts::one_of;
use super::library::{ActingAuthorization, ActingPolicy, Library};
use super::mtls::Modes;
use super::port_table::{Carrier, PortTable};
use super::subject::{Base, Marker, Numbers, SubjectKey};
use crate::mesh::{
    Action, AuthorizationRule, Condition, Dialect, Direction, Effect, MtlsMode, NamedPort, Needs,
    Operation, PortMatch, Ports, Protocol,
};

/// The rules that match a class.
pub(super) struct Matched<'a> {
    pub(super) base: Option<&'a Base>,
    /// In order.
    pub(super) markers: Vec<Marker>,
}

/// A subject, its policies found.
pub(super) struct Situation<'a> {
    key: &'a SubjectKey,
    policies: Vec<&'a ActingPolicy>,
    authorizations: Vec<&'a ActingAuthorization>,
    /// Whether a policy asks for a default deny.
    isolated: bool,
    /// Id of the first policy that isolates, and of the first that does so towards the own node.
    default_deny: u32,
    own_node_default_deny: Option<u32>,
    /// Ids of what asks for STRICT: of the default, and of ports.
    strict: Vec<(Option<u16>, u32)>,
}

/// A rule of L3/L4 whose peers match.
struct Rule {
    id: u32,
    effect: Effect,
    needs: Needs,
    /// None: everything.
    ports: Option<Vec<(Carrier, u16, u16)>>,
}

/// A rule of an AuthorizationPolicy whose source matches.
struct Authorizing<'a> {
    id: u32,
    action: Action,
    rule: &'a AuthorizationRule,
    /// Only a source that needs HTTP matches.
    http: bool,
}

impl<'a> Situation<'a> {
    pub(super) fn of(key: &'a SubjectKey, library: &'a Library, numbers: &mut Numbers<'_>) -> Self {
        let policies: Vec<_> =
            key.policies.iter().filter_map(|version| library.policy(*version)).collect();
        let authorizations: Vec<_> = key
            .authorizations
            .iter()
            .filter_map(|version| library.authorization(*version))
            .collect();
        let isolating = |acting: &&&ActingPolicy| match key.direction {
            Direction::Ingress => acting.policy.isolates_ingress,
            Direction::Egress => acting.policy.isolates_egress,
        };
        let default_deny = policies.iter().find(isolating).map(|acting| acting.origin);
        let own_node_default_deny = policies
            .iter()
            .filter(isolating)
            .find(|acting| acting.policy.dialect == Dialect::Cilium)
            .map(|acting| acting.origin);
        let mut strict = Vec::new();
        if let Some(modes) = &key.mtls {
            let all = std::iter::once((None, &modes.default))
                .chain(modes.ports.iter().map(|(port, said)| (Some(*port), said)));
            for (port, (mode, origin)) in all {
                if *mode == MtlsMode::Strict {
                    strict.push((port, numbers.origin(origin.as_ref())));
                }
            }
        }
        Self {
            key,
            isolated: default_deny.is_some(),
            default_deny: default_deny.unwrap_or(0),
            own_node_default_deny,
            policies,
            authorizations,
            strict,
        }
    }

    /// What is decided about a class that these rules match.
    pub(super) fn table(&self, matched: &Matched<'_>, proven: bool) -> PortTable {
        let rules = self.rules(matched);
        let authorizing = self.authorizing(matched);
        let own_node = matched.base.is_some_and(|base| base.own_node);
        PortTable::tabulate(
            |carrier| self.starts(carrier, &rules, &authorizing),
            |carrier, port| {
                let network = self.network(&rules, own_node, carrier, port);
                if self.key.direction == Direction::Egress
                    || carrier != Carrier::Tcp
                    || !network.allows()
                {
                    return network;
                }
                let mtls = self.mtls(proven, port);
                if !mtls.allows() {
                    return mtls;
                }
                let authorization = self.authorization(matched, &authorizing, port);
                if authorization == Decision::because(Reason::Unrestricted) {
                    network
                } else {
                    authorization
                }
            },
        )
    }

    fn rules(&self, matched: &Matched<'_>) -> Vec<Rule> {
        let named: &[NamedPort] = match self.key.direction {
            Direction::Ingress => &self.key.named_ports,
            Direction::Egress => matched.base.map_or(&[], |base| &base.named_ports),
        };
        let rule = |marker: &Marker| {
            let Marker::Rule(policy, rule) = marker else { return None };
            let acting = self.policies.get(*policy)?;
            let id = acting.rules.get(*rule)?.id;
            let rule = acting.policy.rules.get(*rule)?;
            let ports = rule
                .ports
                .as_ref()
                .map(|ports| ports.iter().flat_map(|port| ranges(port, named)).collect());
            Some(Rule { id, effect: rule.effect, needs: rule.needs, ports })
        };
        matched.markers.iter().filter_map(rule).collect()
    }

    fn authorizing(&self, matched: &Matched<'_>) -> Vec<Authorizing<'a>> {
        let mut found: Vec<(usize, usize, Authorizing<'a>)> = Vec::new();
        for marker in &matched.markers {
            let Marker::Source(policy, index, http) = marker else { continue };
            // A source that needs no HTTP comes first, and then one that does adds nothing.
            let known = found.last().is_some_and(|(p, i, _)| (p, i) == (policy, index));
            let Some(acting) = self.authorizations.get(*policy).filter(|_| !known) else {
                continue;
            };
            if let (Some(rule), Some(own)) =
                (acting.policy.rules.get(*index), acting.rules.get(*index))
            {
                let action = acting.policy.action;
                found.push((
                    *policy,
                    *index,
                    Authorizing { id: own.id, action, rule, http: *http },
                ));
            }
        }
        found.into_iter().map(|(_, _, authorizing)| authorizing).collect()
    }

    /// Ports at which the decision may change.
    fn starts(
        &self,
        carrier: Carrier,
        rules: &[Rule],
        authorizing: &[Authorizing<'_>],
    ) -> Vec<u16> {
        let mut starts = Vec::new();
        for (own, first, last) in rules.iter().filter_map(|rule| rule.ports.as_ref()).flatten() {
            if *own == carrier {
                starts.push(*first);
                starts.extend(last.checked_add(1));
            }
        }
        if carrier != Carrier::Tcp || self.key.direction == Direction::Egress {
            return starts;
        }
        let strict_ports = self.key.mtls.iter().flat_map(|modes| modes.ports.keys());
        let authorized_ports = authorizing.iter().flat_map(|authorizing| ports(authorizing.rule));
        for port in strict_ports.copied().chain(authorized_ports) {
            starts.push(port);
            starts.extend(port.checked_add(1));
        }
        starts
    }

    fn network(&self, rules: &[Rule], own_node: bool, carrier: Carrier, port: u16) -> Decision {
        let mut allowing = None;
        let mut lacking = None;
        for rule in rules.iter().filter(|rule| rule.covers(carrier, port)) {
            match (rule.effect, rule.needs) {
                (Effect::Deny, needs) => {
                    return Decision::of(rule.id, lack(needs).unwrap_or(Reason::RuleDenies));
                }
                (Effect::Allow, Needs::L4) => {
                    allowing = allowing.or(Some(rule.id));
                }
                (Effect::Allow, needs) => {
                    lacking = lacking.or(lack(needs).map(|reason| Decision::of(rule.id, reason)));
                }
            }
        }
        if !self.isolated {
            return Decision::because(Reason::Unrestricted);
        }
        if let Some(rule) = allowing {
            return Decision::of(rule, Reason::Rule);
        }
        let default_deny = match (own_node, self.own_node_default_deny) {
            (false, _) => self.default_deny,
            (true, Some(cilium)) => cilium,
            (true, None) => return Decision::because(Reason::OwnNode),
        };
        lacking.unwrap_or(Decision::of(default_deny, Reason::NoRule))
    }

    fn mtls(&self, proven: bool, port: u16) -> Decision {
        let unrestricted = Decision::because(Reason::Unrestricted);
        let Some(modes) = &self.key.mtls else { return unrestricted };
        if modes.of(port).0 != MtlsMode::Strict {
            return unrestricted;
        }
        if proven {
            return unrestricted;
        }
        let said_of = modes.ports.contains_key(&port).then_some(port);
        let rule = self.strict.iter().find(|(port, _)| *port == said_of).map_or(0, |(_, id)| *id);
        Decision::of(rule, Reason::NotProven)
    }

    fn authorization(
        &self,
        matched: &Matched<'_>,
        authorizing: &[Authorizing<'_>],
        port: u16,
    ) -> Decision {
        if self.authorizations.is_empty() {
            return Decision::because(Reason::Unrestricted);
        }
        let destination = self.destination(matched);
        let matching = || {
            authorizing.iter().filter_map(|authorizing| {
                let needs = authorizing.needs(port, destination)?;
                Some((authorizing, needs))
            })
        };
        for (authorizing, needs) in matching() {
            let reason = match authorizing.action {
                Action::Deny => lack(needs).unwrap_or(Reason::RuleDenies),
                Action::Custom => Reason::Unsupported,
                Action::Allow | Action::Audit => continue,
            };
            return Decision::of(authorizing.id, reason);
        }
        let first_allow =
            self.authorizations.iter().find(|acting| acting.policy.action == Action::Allow);
        let Some(first_allow) = first_allow else {
            return Decision::because(Reason::Unrestricted);
        };
        let mut lacking = None;
        for (authorizing, needs) in matching().filter(|(a, _)| a.action == Action::Allow) {
            match lack(needs) {
                None => return Decision::of(authorizing.id, Reason::Rule),
                Some(reason) => {
                    lacking = lacking.or(Some(Decision::of(authorizing.id, reason)));
                }
            }
        }
        lacking.unwrap_or(Decision::of(first_allow.origin, Reason::NoRule))
    }

    /// The pod's address of the peer's family.
    fn destination(&self, matched: &Matched<'_>) -> Option<IpAddr> {
        let v4 = matched.base?.v4?;
        self.key.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
    }
}

impl Rule {
    fn covers(&self, carrier: Carrier, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| {
            ports
                .iter()
                .any(|(own, first, last)| *own == carrier && *first <= port && port <= *last)
        })
    }
}

impl Authorizing<'_> {
    /// What it needs to match a port of a destination indeed; none if it does not match.
    fn needs(&self, port: u16, destination: Option<IpAddr>) -> Option<Needs> {
        let meant = |operation: &&Operation| {
            one_of(&operation.ports, &operation.not_ports, |own| *own == port)
        };
        let http = if self.rule.to.is_empty() {
            false
        } else {
            self.rule.to.iter().filter(meant).map(|operation| operation.needs_http).min()?
        };
        for condition in &self.rule.when {
            let holds = match condition {
                Condition::DestinationPort { values, not_values } => {
                    one_of(values, not_values, |own| *own == port)
                }
                Condition::DestinationIp { values, not_values } => {
                    one_of(values, not_values, |block| is_within(block, destination))
                }
                _ => true,
            };
            if !holds {
                return None;
            }
        }
        Some(match self.rule.needs {
            Needs::L4 if http || self.http => Needs::Http,
            needs => needs,
        })
    }
}

fn is_within(block: &IpNet, address: Option<IpAddr>) -> bool {
    address
        .is_some_and(|address| !BlockSet::of([&Block::from(block)]).containing(address).is_empty())
}

/// Ports that a rule speaks of.
fn ports(rule: &AuthorizationRule) -> Vec<u16> {
    let mut ports = Vec::new();
    for operation in &rule.to {
        ports.extend(operation.ports.iter().chain(&operation.not_ports));
    }
    for condition in &rule.when {
        if let Condition::DestinationPort { values, not_values } = condition {
            ports.extend(values.iter().chain(not_values));
        }
    }
    ports
}

fn lack(needs: Needs) -> Option<Reason> {
    match needs {
        Needs::L4 => None,
        Needs::Http => Some(Reason::NeedsHttp),
        Needs::Unsupported => Some(Reason::Unsupported),
    }
}

/// The ranges that a port of a rule means on a destination with these named ports.
fn ranges(port: &PortMatch, named: &[NamedPort]) -> Vec<(Carrier, u16, u16)> {
    let carriers: Vec<Carrier> = match port.protocol {
        Some(protocol) => vec![carrier(protocol)],
        None => vec![Carrier::Tcp, Carrier::Udp, Carrier::Sctp],
    };
    let of_all = |first: u16, last: u16| {
        carriers.iter().map(move |carrier| (*carrier, first, last)).collect::<Vec<_>>()
    };
    match &port.ports {
        Ports::All => of_all(0, u16::MAX),
        Ports::Range(first, last) => {
            of_all(*first, *last).into_iter().filter(|(own, ..)| *own != Carrier::Icmp).collect()
        }
        Ports::Named(name) => named
            .iter()
            .filter(|named| named.name == *name && named.protocol != Protocol::Icmp)
            .map(|named| (carrier(named.protocol), named.port, named.port))
            .filter(|(own, ..)| carriers.contains(own))
            .collect(),
    }
}

fn carrier(protocol: Protocol) -> Carrier {
    match protocol {
        Protocol::Icmp => Carrier::Icmp,
        Protocol::Tcp => Carrier::Tcp,
        Protocol::Udp => Carrier::Udp,
        Protocol::Sctp => Carrier::Sctp,
    }
}

/// Table for a pod's ports that take no tunnel: those are denied in it. None if there are none.
pub(super) fn plain(modes: &Modes, numbers: &mut Numbers<'_>) -> u32 {
    if !modes.any_is(MtlsMode::Disable) {
        return 0;
    }
    if modes.all_are(MtlsMode::Disable) {
        return u32::MAX;
    }
    let mut rules = std::collections::HashMap::new();
    for (_, origin) in std::iter::once(&modes.default).chain(modes.ports.values()) {
        let id = numbers.origin(origin.as_ref());
        rules.insert(origin.clone(), id);
    }
    let table = PortTable::tabulate(
        |carrier| match carrier {
            Carrier::Tcp => {
                let ports = modes.ports.keys();
                ports.flat_map(|port| [Some(*port), port.checked_add(1)]).flatten().collect()
            }
            _ => Vec::new(),
        },
        |carrier, port| match modes.of(port) {
            (MtlsMode::Disable, origin) if carrier == Carrier::Tcp => {
                Decision::of(rules.get(origin).copied().unwrap_or(0), Reason::NotProven)
            }
            _ => Decision::because(Reason::Unrestricted),
        },
    );
    numbers.table(table)
}
