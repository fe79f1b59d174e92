//! What policy says about a connection, and which line of which manifest says so.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_common::Path;
use weft_model::evaluate::{Connection, Outcome, Party, Verdict, backends, path, verdict};
use weft_model::mesh::{Mesh, Name, Protocol, Service, ServicePort};
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
    /// The service serves the port nowhere, or nowhere that the client would be sent to.
    #[error("{0} has no endpoint for this port and this client: connections to it fail")]
    NoEndpoint(String),
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
    let node = node_of(mesh, &source);
    let dialled = Dialled { mesh, node: node.as_deref(), port, protocol };
    let destinations = dialled.destinations(&request.to)?;

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

/// The node that a connection comes from, if it comes from one.
fn node_of(mesh: &Mesh, source: &Party) -> Option<Arc<str>> {
    match source {
        Party::Pod(name) => mesh.pods.get(name).map(|pod| pod.node.clone()),
        Party::Address(address) => {
            let of_pod = || mesh.pod_at(*address).map(|pod| pod.node.clone());
            mesh.node_at(*address).or_else(of_pod)
        }
    }
}

/// What is dialled, and from where: services send clients of some nodes to some endpoints.
struct Dialled<'a> {
    mesh: &'a Mesh,
    node: Option<&'a str>,
    port: u16,
    protocol: Protocol,
}

impl Dialled<'_> {
    /// Where a connection ends: one place, or each endpoint of a service.
    fn destinations(&self, text: &str) -> Result<Vec<(Party, u16)>, ExplainError> {
        let mesh = self.mesh;
        let unknown = || ExplainError::Unknown {
            field: "to",
            text: text.to_owned(),
            or_service: " or service",
        };
        if let Some(name) = text.strip_prefix("service:") {
            let name = find(mesh.services.keys(), "to", name)?.ok_or_else(unknown)?;
            return self.of_service(mesh.services.get(&name).ok_or_else(unknown)?, None);
        }
        if let Some(name) = find(mesh.pods.keys(), "to", text)? {
            return Ok(vec![(Party::Pod(name), self.port)]);
        }
        if let Some(name) = find(mesh.services.keys(), "to", text)? {
            return self.of_service(mesh.services.get(&name).ok_or_else(unknown)?, None);
        }
        let address = text.parse::<IpAddr>().map_err(|_| unknown())?.to_canonical();
        let is_its = |service: &&Arc<Service>| {
            service.addresses.iter().any(|own| own.to_canonical() == address)
        };
        if let Some(service) = mesh.services.values().find(is_its) {
            return self.of_service(service, Some(address));
        }
        // A load balancer's, an external one, or a node's with the port of a service.
        let node = self.node.unwrap_or_default();
        match backends(mesh, node, address, self.port, self.protocol) {
            Some(found) => self.ends(&format!("the service at {address}"), found),
            None => Ok(vec![(Party::Address(address), self.port)]),
        }
    }

    /// The endpoints to which a client of this node is sent by an address of the service, or by
    /// any of them.
    fn of_service(
        &self,
        service: &Service,
        address: Option<IpAddr>,
    ) -> Result<Vec<(Party, u16)>, ExplainError> {
        let is_it =
            |served: &&ServicePort| served.port == self.port && served.protocol == self.protocol;
        let served = service.ports.iter().find(is_it).ok_or_else(|| {
            let of_port = |served: &ServicePort| {
                format!("{}/{}", served.port, protocol_text(served.protocol))
            };
            ExplainError::NoSuchServicePort {
                service: service.name.clone(),
                port: self.port,
                protocol: protocol_text(self.protocol).to_owned(),
                ports: service.ports.iter().map(of_port).collect::<Vec<_>>().join(", "),
            }
        })?;
        let of_address =
            |address| backends(self.mesh, self.node?, address, self.port, self.protocol);
        let found = match (self.node, address) {
            (Some(_), Some(address)) => of_address(address).unwrap_or_default(),
            (Some(_), None) if !service.addresses.is_empty() => {
                service.addresses.iter().filter_map(|own| of_address(*own)).flatten().collect()
            }
            // Headless, or from no node.
            _ => self.mesh.endpoints(service, served),
        };
        self.ends(&format!("service {}", service.name), found)
    }

    fn ends(
        &self,
        service: &str,
        endpoints: Vec<SocketAddr>,
    ) -> Result<Vec<(Party, u16)>, ExplainError> {
        if endpoints.is_empty() {
            return Err(ExplainError::NoEndpoint(service.to_owned()));
        }
        let party = |endpoint: SocketAddr| match self.mesh.pod_at(endpoint.ip()) {
            Some(pod) => (Party::Pod(pod.name.clone()), endpoint.port()),
            None => (Party::Address(endpoint.ip()), endpoint.port()),
        };
        Ok(endpoints.into_iter().map(party).collect())
    }
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
