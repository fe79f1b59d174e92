//! What policy says about a connection, and which line of which manifest says so.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use weft_common::Path;
use weft_model::evaluate::{Connection, Outcome, Party, Verdict, path, verdict};
use weft_model::mesh::{Mesh, Name, Protocol, Service};
use weft_proto::v1::{ExplainRequest, ExplainResponse, Step};

use crate::flows::{path_text, reason_text, rule};

/// Why nothing can be said.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// An end that there is not.
    #[error("{field}: there is no pod{or_service} {text:?} in the mesh, and it is no address")]
    Unknown {
        /// Which end.
        field: &'static str,
        /// As it was given.
        text: String,
        /// Whether a service would have done.
        or_service: &'static str,
    },
    /// A name without namespace that several objects have.
    #[error("{field}: {text:?} is ambiguous, say which: {candidates}")]
    Ambiguous {
        /// Which end.
        field: &'static str,
        /// As it was given.
        text: String,
        /// All that have the name.
        candidates: String,
    },
    /// No such protocol.
    #[error("protocol: {0:?} is none of tcp, udp, icmp, sctp")]
    Protocol(String),
    /// Out of range.
    #[error("port: {0} is not between 1 and 65535")]
    Port(u32),
    /// The service does not serve the port.
    #[error("port: service {service} has no port {port}/{protocol}; it has {ports}")]
    NoSuchServicePort {
        /// The service.
        service: Name,
        /// As it was given.
        port: u16,
        /// As it was given.
        protocol: String,
        /// What there is.
        ports: String,
    },
    /// The service serves the port nowhere.
    #[error("service {0} has no endpoint for this port: connections to it fail")]
    NoEndpoint(Name),
}

/// Explains a connection in a mesh. `same_node_mtls` is the setting `sameNode: mtls`.
///
/// # Errors
/// Where an end, port or protocol is not to be understood.
pub fn explain(
    mesh: &Mesh,
    same_node_mtls: bool,
    request: &ExplainRequest,
) -> Result<ExplainResponse, ExplainError> {
    let protocol = protocol(&request.protocol)?;
    let port = match (u16::try_from(request.port), protocol) {
        (Ok(port), Protocol::Icmp) => port,
        (Ok(port), _) if port != 0 => port,
        _ => return Err(ExplainError::Port(request.port)),
    };
    let source = party(mesh, "from", &request.from)?;
    let destinations = destinations(mesh, &request.to, port, protocol)?;

    let mut judged: Vec<(Party, Path, Verdict)> = Vec::new();
    for (destination, port) in destinations {
        let mut connection = Connection {
            source: source.clone(),
            destination: destination.clone(),
            protocol,
            port,
            proven: false,
        };
        let mut path = path(mesh, &connection);
        if path == Path::Direct && same_node_mtls {
            path = Path::Tunnel;
        }
        connection.proven = path != Path::Untouched;
        judged.push((destination, path, verdict(mesh, &connection)));
    }
    // The one that is refused says more than those that are not.
    let (destination, path, decisive) = judged
        .iter()
        .find(|(_, _, verdict)| !verdict.allows())
        .or_else(|| judged.first())
        .ok_or_else(|| ExplainError::Unknown {
            field: "to",
            text: request.to.clone(),
            or_service: " or service",
        })?;
    let agree = judged.iter().all(|(_, _, verdict)| verdict.allows() == decisive.allows());
    let text = if agree { allowed(&decisive.outcome) } else { "mixed" };
    Ok(ExplainResponse {
        verdict: text.to_owned(),
        reason: reason_text(decisive.outcome.reason as u32).to_owned(),
        rule: decisive.outcome.origin.as_ref().map(rule),
        path: path_text(*path as u8).to_owned(),
        steps: decisive
            .steps
            .iter()
            .map(|step| Step {
                direction: step.layer.to_string(),
                subject: if step.layer == weft_model::evaluate::Layer::Egress {
                    source.to_string()
                } else {
                    destination.to_string()
                },
                verdict: allowed(&step.outcome).to_owned(),
                reason: reason_text(step.outcome.reason as u32).to_owned(),
                rule: step.outcome.origin.as_ref().map(rule),
            })
            .collect(),
    })
}

fn allowed(outcome: &Outcome) -> &'static str {
    if outcome.allows() { "allowed" } else { "denied" }
}

fn protocol(text: &str) -> Result<Protocol, ExplainError> {
    match text.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" | "icmpv6" => Ok(Protocol::Icmp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(ExplainError::Protocol(text.to_owned())),
    }
}

/// `namespace/pod`, `pod` where only one has the name, or an address.
fn party(mesh: &Mesh, field: &'static str, text: &str) -> Result<Party, ExplainError> {
    find(mesh.pods.keys(), field, text)?
        .map(Party::Pod)
        .or_else(|| text.parse().ok().map(Party::Address))
        .ok_or_else(|| ExplainError::Unknown { field, text: text.to_owned(), or_service: "" })
}

/// Where a connection ends: one place, or each endpoint of a service.
fn destinations(
    mesh: &Mesh,
    text: &str,
    port: u16,
    protocol: Protocol,
) -> Result<Vec<(Party, u16)>, ExplainError> {
    let unknown =
        || ExplainError::Unknown { field: "to", text: text.to_owned(), or_service: " or service" };
    if let Some(name) = text.strip_prefix("service:") {
        let name = find(mesh.services.keys(), "to", name)?.ok_or_else(unknown)?;
        let service = mesh.services.get(&name).ok_or_else(unknown)?;
        return backends(mesh, service, port, protocol);
    }
    if let Some(name) = find(mesh.pods.keys(), "to", text)? {
        return Ok(vec![(Party::Pod(name), port)]);
    }
    if let Some(name) = find(mesh.services.keys(), "to", text)? {
        let service = mesh.services.get(&name).ok_or_else(unknown)?;
        return backends(mesh, service, port, protocol);
    }
    let address = text.parse::<IpAddr>().map_err(|_| unknown())?.to_canonical();
    let dialled = mesh
        .services
        .values()
        .find(|service| service.addresses.iter().any(|own| own.to_canonical() == address));
    match dialled {
        Some(service) => backends(mesh, service, port, protocol),
        None => Ok(vec![(Party::Address(address), port)]),
    }
}

fn backends(
    mesh: &Mesh,
    service: &Service,
    port: u16,
    protocol: Protocol,
) -> Result<Vec<(Party, u16)>, ExplainError> {
    let served = service
        .ports
        .iter()
        .find(|served| served.port == port && served.protocol == protocol)
        .ok_or_else(|| ExplainError::NoSuchServicePort {
            service: service.name.clone(),
            port,
            protocol: protocol_text(protocol).to_owned(),
            ports: service
                .ports
                .iter()
                .map(|served| format!("{}/{}", served.port, protocol_text(served.protocol)))
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    let endpoints: Vec<_> = mesh
        .endpoints(service, served)
        .into_iter()
        .map(|endpoint| {
            let party = match mesh.pod_at(endpoint.ip()) {
                Some(pod) => Party::Pod(pod.name.clone()),
                None => Party::Address(endpoint.ip()),
            };
            (party, endpoint.port())
        })
        .collect();
    if endpoints.is_empty() {
        return Err(ExplainError::NoEndpoint(service.name.clone()));
    }
    Ok(endpoints)
}

fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Icmp => "icmp",
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// `namespace/name`, or a name that only one has.
fn find<'a>(
    mut names: impl Iterator<Item = &'a Name>,
    field: &'static str,
    text: &str,
) -> Result<Option<Name>, ExplainError> {
    if let Some((namespace, name)) = text.split_once('/') {
        return Ok(names
            .find(|known| *known.namespace == *namespace && *known.name == *name)
            .cloned());
    }
    let found: Vec<&Name> = names.filter(|known| *known.name == *text).collect();
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).clone())),
        several => Err(ExplainError::Ambiguous {
            field,
            text: text.to_owned(),
            candidates: several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}
