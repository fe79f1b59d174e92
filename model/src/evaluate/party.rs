use std::net::IpAddr;
use std::sync::Arc;

use super::{Connection, Party};
use crate::mesh::{Mesh, Pod};

/// What an end of a connection is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A pod with an address of its own.
    Pod(Arc<Pod>),
    /// A node, or a pod on its network.
    Node(Arc<str>),
    /// Neither.
    World,
}

/// One end, found in the mesh.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) kind: Kind,
    /// None for a pod that has no address (of the family that is needed) yet.
    pub(super) address: Option<IpAddr>,
}

/// Both ends.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) source: End,
    pub(super) destination: End,
}

impl Ends {
    /// None if a pod is named that there is not, or that has finished.
    pub(super) fn of(mesh: &Mesh, connection: &Connection) -> Option<Self> {
        let sources = addresses(mesh, &connection.source)?;
        let destinations = addresses(mesh, &connection.destination)?;
        let same_family = sources.iter().find_map(|source| {
            let other = destinations.iter().find(|other| other.is_ipv4() == source.is_ipv4())?;
            Some((*source, *other))
        });
        let (source, destination) = match same_family {
            Some((source, destination)) => (Some(source), Some(destination)),
            None => (sources.first().copied(), destinations.first().copied()),
        };
        Some(Self {
            source: End::of(mesh, &connection.source, source)?,
            destination: End::of(mesh, &connection.destination, destination)?,
        })
    }

    pub(super) fn are_one_pod(&self) -> bool {
        match (&self.source.kind, &self.destination.kind) {
            (Kind::Pod(source), Kind::Pod(destination)) => source.name == destination.name,
            _ => false,
        }
    }
}

impl End {
    fn of(mesh: &Mesh, party: &Party, address: Option<IpAddr>) -> Option<Self> {
        let kind = match party {
            Party::Pod(name) => {
                let pod = mesh.pods.get(name)?;
                if pod.host_network { Kind::Node(pod.node.clone()) } else { Kind::Pod(pod.clone()) }
            }
            Party::Address(address) => match (mesh.node_at(*address), mesh.pod_at(*address)) {
                (Some(node), _) => Kind::Node(node),
                (None, Some(pod)) => Kind::Pod(pod.clone()),
                (None, None) => Kind::World,
            },
        };
        Some(Self { kind, address })
    }

    pub(super) fn is_node(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Node(node) if **node == *name)
    }

    pub(super) fn pod(&self) -> Option<&Arc<Pod>> {
        match &self.kind {
            Kind::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}

fn addresses(mesh: &Mesh, party: &Party) -> Option<Vec<IpAddr>> {
    match party {
        Party::Address(address) => Some(vec![address.to_canonical()]),
        Party::Pod(name) => {
            let pod = mesh.pods.get(name).filter(|pod| !pod.finished)?;
            Some(pod.addresses.iter().map(IpAddr::to_canonical).collect())
        }
    }
}
