//! One connection, judged by the evaluator and by the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use weft_common::{Decision, Reason};
use weft_model::compile::{Compiler, Lookup, Tables};
use weft_model::evaluate::{Connection, Outcome, Party, backends, verdict};
use weft_model::mesh::{Mesh, Name, Origin, Protocol};

/// The tables of every node.
pub type Cluster = BTreeMap<Arc<str>, Tables>;

pub fn compile(mesh: &Mesh) -> Cluster {
    mesh.nodes
        .keys()
        .map(|node| (node.clone(), Compiler::starting_at(1).compile(mesh, node)))
        .collect()
}

/// Looks things up in a cluster's tables.
pub struct Lookups<'a> {
    cluster: &'a Cluster,
    of: BTreeMap<Arc<str>, Lookup<'a>>,
}

impl<'a> Lookups<'a> {
    pub fn of(cluster: &'a Cluster) -> Self {
        let of = cluster.iter().map(|(node, tables)| (node.clone(), Lookup::of(tables)));
        Self { cluster, of: of.collect() }
    }
}

/// The evaluator and the tables do not agree.
#[derive(Debug)]
pub struct Difference {
    pub connection: Connection,
    pub what: &'static str,
    pub expected: Outcome,
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { source, destination, protocol, port, proven } = &self.connection;
        writeln!(f, "{source} -> {destination} {protocol:?}/{port}, proven: {proven}")?;
        let origin = self.expected.origin.as_ref().map(Origin::to_string);
        writeln!(f, "{}: expected {:?} by {origin:?}", self.what, self.expected.reason)?;
        write!(f, "{}: found {}", self.what, self.found)
    }
}

/// The addresses of both ends, and the pod at the source, as the kernel would see them. None
/// where there can be no such connection.
pub fn ends(mesh: &Mesh, connection: &Connection) -> Option<(IpAddr, IpAddr)> {
    let addresses = |party: &Party| -> Option<Vec<IpAddr>> {
        match party {
            Party::Address(address) => Some(vec![*address]),
            Party::Pod(name) => {
                let pod = mesh.pods.get(name).filter(|pod| !pod.finished)?;
                Some(pod.addresses.clone())
            }
        }
    };
    let destinations = addresses(&connection.destination)?;
    let (source, destination) = addresses(&connection.source)?.into_iter().find_map(|source| {
        let like = destinations.iter().find(|other| other.is_ipv4() == source.is_ipv4())?;
        Some((source, *like))
    })?;
    // A pod whose address another has too is not known by it.
    let is_found = |party: &Party, address: IpAddr| match party {
        Party::Address(_) => true,
        Party::Pod(name) => mesh.pods.get(name).is_some_and(|pod| {
            pod.host_network || mesh.pod_at(address).is_some_and(|found| found.name == *name)
        }),
    };
    (is_found(&connection.source, source) && is_found(&connection.destination, destination))
        .then_some((source, destination))
}

/// None where there can be no such connection, or neither end is a pod.
pub fn compare(
    mesh: &Mesh,
    lookups: &Lookups<'_>,
    connection: &Connection,
) -> Option<Result<Outcome, Box<Difference>>> {
    let (source, destination) = ends(mesh, connection)?;
    let from = mesh.pod_at(source);
    let to = mesh.pod_at(destination);
    let verdict = verdict(mesh, connection);
    let decide = |node: &Arc<str>, client: Option<&Name>| {
        let (tables, lookup) = (lookups.cluster.get(node)?, lookups.of.get(node)?);
        let client = client.and_then(|name| tables.pods.get(name)).map_or(0, |pod| pod.id);
        let decisions = lookup.connection(
            client,
            source.into(),
            destination.into(),
            connection.protocol.number(),
            connection.port,
            connection.proven,
        );
        Some((tables, decisions))
    };
    let check = |what, expected: Outcome, tables: &Tables, found: Option<Decision>| {
        let found = found.unwrap_or(Decision::because(Reason::Unrestricted));
        if says(tables, found, &expected) {
            return Ok(());
        }
        let connection = connection.clone();
        Err(Box::new(Difference { connection, what, expected, found: describe(tables, found) }))
    };

    let mut results = Vec::new();
    if let Some(from) = from
        && let Some((tables, found)) = decide(&from.node, Some(&from.name))
    {
        results.push(check("egress", verdict.egress(), tables, found.egress));
        if to.is_some_and(|to| to.node == from.node) {
            let all = Some(found.decision());
            results.push(check("whole", verdict.outcome.clone(), tables, all));
        }
    }
    if let Some(to) = to
        && let Some((tables, found)) = decide(&to.node, None)
    {
        results.push(check("ingress", verdict.ingress(), tables, found.ingress));
    }
    if results.is_empty() {
        return None;
    }
    let agreed: Result<(), Box<Difference>> = results.into_iter().collect();
    Some(agreed.map(|()| verdict.outcome))
}

/// Looks up every address and port at which there may be a service, from every node. Returns how
/// many have one, or how the first difference looks.
pub fn compare_services(mesh: &Mesh, cluster: &Cluster) -> Result<usize, String> {
    let of_services =
        mesh.services.values().flat_map(|one| one.addresses.iter().chain(&one.external));
    let of_nodes = mesh.nodes.values().flat_map(|node| &node.addresses);
    let addresses: BTreeSet<IpAddr> = of_services.chain(of_nodes).copied().collect();
    let ports = mesh.services.values().flat_map(|service| &service.ports);
    let ports: BTreeSet<u16> = ports
        .flat_map(|port| [Some(port.port), port.node_port, Some(port.port + 1)])
        .flatten()
        .collect();
    let mut served = 0;
    for (node, tables) in cluster {
        for (address, port) in
            addresses.iter().flat_map(|one| ports.iter().map(move |port| (*one, *port)))
        {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let expected = backends(mesh, node, address, port, protocol);
                let entry = tables.services.get(&(address.into(), port, protocol.number()));
                let found = entry.map(|entry| {
                    (0..entry.count)
                        .filter_map(|slot| tables.backends.get(&(entry.backends, slot)))
                        .map(|one| (one.address, one.port))
                        .collect::<Vec<_>>()
                });
                let wanted = expected.as_ref().map(|backends| {
                    backends
                        .iter()
                        .map(|one| (one.ip().into(), one.port().into()))
                        .collect::<Vec<_>>()
                });
                if found != wanted {
                    return Err(format!(
                        "{node} to {protocol:?} {address} port {port}: expected {expected:?}, found {found:?}"
                    ));
                }
                served += usize::from(found.is_some_and(|found| !found.is_empty()));
            }
        }
    }
    Ok(served)
}

fn says(tables: &Tables, found: Decision, expected: &Outcome) -> bool {
    let rule = match (found.rule, &expected.origin) {
        (0, None) => true,
        (rule, Some(origin)) => tables.rules.get(&rule) == Some(origin),
        (_, None) => false,
    };
    rule && found.reason == expected.reason as u32
}

fn describe(tables: &Tables, Decision { rule, reason }: Decision) -> String {
    let origin = tables.rules.get(&rule).map(Origin::to_string);
    format!("reason {reason} by rule {rule} {origin:?}")
}
