use weft_common::Path;

use super::party::{End, Ends, Kind};
use super::{Connection, mtls};
use crate::mesh::{Mesh, MtlsMode, Protocol};

/// The path that a connection takes from a pod, where `sameNode: mtls` is not set: direct
/// between two pods of the mesh on one node, by tunnel between two nodes, untouched otherwise.
/// On the first two the source's identity is proven. UDP and ICMP are always untouched.
pub fn path(mesh: &Mesh, connection: &Connection) -> Path {
    let Some(ends) = Ends::of(mesh, connection) else { return Path::Untouched };
    let meshed = |end: &End| match &end.kind {
        Kind::Pod(pod) => Some(pod.clone()).filter(|pod| mesh.is_enrolled(pod)),
        _ => None,
    };
    let (Some(source), Some(destination)) = (meshed(&ends.source), meshed(&ends.destination))
    else {
        return Path::Untouched;
    };
    if connection.protocol != Protocol::Tcp {
        return Path::Untouched;
    }
    if source.node == destination.node {
        return Path::Direct;
    }
    match mtls(mesh, &destination, connection.port).mode {
        MtlsMode::Disable => Path::Untouched,
        MtlsMode::Strict | MtlsMode::Permissive => Path::Tunnel,
    }
}
