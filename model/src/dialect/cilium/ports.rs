use std::sync::Arc;

use super::schema::{L7Rules, PortProtocol, PortRule};
use crate::dialect::path::Path;
use crate::dialect::reading::Reading;
use crate::mesh::{Effect, Needs, PortMatch, Ports, Protocol};

/// How many ports an item of `toPorts` may have.
const MAX_PORTS: usize = 40;

/// An item of `toPorts`: its ports, and what it asks for beyond them.
pub(super) fn read(
    reading: &mut Reading<'_>,
    at: &Path,
    rule: &PortRule,
) -> (Vec<PortMatch>, Needs) {
    let ports_at = at.field("ports");
    let listed = rule.ports.as_deref().unwrap_or_default();
    if listed.is_empty() {
        reading.warning(&ports_at, "missing or empty: no port matches; `port: \"0\"` means all");
    }
    if listed.len() > MAX_PORTS {
        reading.error(&ports_at, format_args!("more than {MAX_PORTS} ports; make two items of it"));
    }
    let mut ports = Vec::new();
    let mut needs = needs(reading, at, rule);
    for (index, port) in listed.iter().enumerate() {
        match port_match(reading, &ports_at.index(index), port) {
            Some(Matched::Port(port)) => ports.push(port),
            Some(Matched::IcmpType) => {
                ports.push(PortMatch { protocol: Some(Protocol::Icmp), ports: Ports::All });
                needs = Needs::Unsupported;
            }
            None => {}
        }
    }
    (ports, needs)
}

/// What `icmps` matches: ICMP as a whole, for types are not told apart.
pub(super) fn icmps(reading: &mut Reading<'_>, at: &Path, effect: Effect) -> Vec<PortMatch> {
    reading.warning(
        at,
        match effect {
            Effect::Allow => "types of ICMP are not supported; the rule allows nothing",
            Effect::Deny => "types of ICMP are not supported; the rule denies all of ICMP",
        },
    );
    vec![PortMatch { protocol: Some(Protocol::Icmp), ports: Ports::All }]
}

fn needs(reading: &mut Reading<'_>, at: &Path, rule: &PortRule) -> Needs {
    let mut needs = Needs::L4;
    let beyond = [
        ("terminatingTLS", rule.terminating_tls.is_some()),
        ("originatingTLS", rule.originating_tls.is_some()),
        ("serverNames", rule.server_names.as_ref().is_some_and(|names| !names.is_empty())),
        ("listener", rule.listener.is_some()),
    ];
    for (field, is_set) in beyond {
        if is_set {
            reading.warning(
                &at.field(field),
                "is not supported; what it stands for is denied until it is",
            );
            needs = Needs::Unsupported;
        }
    }
    if let Some(rules) = &rule.rules {
        needs = needs.max(needs_of_rules(reading, &at.field("rules"), rules));
    }
    needs
}

fn needs_of_rules(reading: &mut Reading<'_>, at: &Path, rules: &L7Rules) -> Needs {
    let is_set = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let mut needs = Needs::L4;
    if is_set(&rules.http) {
        reading.warning(&at.field("http"), crate::dialect::NEEDS_HTTP);
        needs = Needs::Http;
    }
    let others = [
        ("kafka", is_set(&rules.kafka)),
        ("dns", is_set(&rules.dns)),
        ("l7", is_set(&rules.l7)),
        ("l7proto", rules.l7proto.as_ref().is_some_and(|name| !name.is_empty())),
    ];
    for (field, is_set) in others {
        if is_set {
            reading.warning(
                &at.field(field),
                "is not supported; what it would have to inspect is denied",
            );
            needs = Needs::Unsupported;
        }
    }
    needs
}

enum Matched {
    Port(PortMatch),
    /// A type of ICMP in the place of a port.
    IcmpType,
}

fn port_match(reading: &mut Reading<'_>, at: &Path, port: &PortProtocol) -> Option<Matched> {
    let protocol = protocol(reading, &at.field("protocol"), port.protocol.as_deref())?;
    let port_at = at.field("port");
    let end_at = at.field("endPort");
    let Some(text) = port.port.as_deref().filter(|port| !port.is_empty()) else {
        reading.error(&port_at, "missing; `port: \"0\"` means all ports");
        return None;
    };
    let end = port.end_port.filter(|end| *end != 0);
    let ports = if is_service_name(text) {
        if end.is_some() {
            reading.error(&end_at, "is only allowed beside a numeric port; remove it");
        }
        Ports::Named(Arc::from(text.to_ascii_lowercase()))
    } else {
        let Ok(first) = text.parse::<u16>() else {
            reading.error(
                &port_at,
                format_args!(
                    "\"{text}\" is neither a port (0 for all, to 65535) nor the name of one (at \
                     most 15 letters, digits and '-')"
                ),
            );
            return None;
        };
        range(reading, &end_at, first, end)?
    };
    match protocol {
        Some(Protocol::Icmp) if ports != Ports::All => Some(Matched::IcmpType),
        protocol => Some(Matched::Port(PortMatch { protocol, ports })),
    }
}

fn range(reading: &mut Reading<'_>, at: &Path, first: u16, end: Option<i64>) -> Option<Ports> {
    let Some(end) = end else {
        return Some(if first == 0 { Ports::All } else { Ports::Range(first, first) });
    };
    match u16::try_from(end) {
        Err(_) => {
            reading.error(at, format_args!("{end} is no port; ports go from 1 to 65535"));
            None
        }
        Ok(last) if last < first => {
            reading.error(at, format_args!("{last} is below port {first}; swap them"));
            None
        }
        Ok(last) => Some(Ports::Range(first, last)),
    }
}

/// None of `Some` is any; reports what is none.
fn protocol(
    reading: &mut Reading<'_>,
    at: &Path,
    protocol: Option<&str>,
) -> Option<Option<Protocol>> {
    match protocol.unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "ANY" => Some(None),
        "TCP" => Some(Some(Protocol::Tcp)),
        "UDP" => Some(Some(Protocol::Udp)),
        "SCTP" => Some(Some(Protocol::Sctp)),
        "ICMP" | "ICMPV6" => Some(Some(Protocol::Icmp)),
        other => {
            reading.error(at, format_args!("\"{other}\" is none of TCP, UDP, SCTP, ICMP, ANY"));
            None
        }
    }
}

/// RFC 6335, 5.1.
fn is_service_name(text: &str) -> bool {
    text.len() <= 15
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}
