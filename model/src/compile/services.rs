//! Service addresses and their backends.

use std::net::SocketAddr;

use weft_common::{Endpoint, Service};

use super::ids::{Epoch, Ids, Interned};
use super::{ServiceKeyOrd, Tables};
use crate::mesh::{Mesh, ServiceEndpoint};

/// The backends of one address and port, in order.
pub(super) type Backends = Vec<SocketAddr>;

pub(super) fn compile(
    mesh: &Mesh,
    node: &str,
    interned: &mut Interned<Backends>,
    ids: &mut Ids,
    epoch: Epoch,
    tables: &mut Tables,
) {
    for service in mesh.services.values().filter(|service| !service.addresses.is_empty()) {
        for port in &service.ports {
            let mut endpoints = mesh.service_endpoints(service, port);
            if service.internal_local {
                endpoints.retain(|endpoint| endpoint.node.as_deref() == Some(node));
            }
            for address in &service.addresses {
                let address = address.to_canonical();
                let key: ServiceKeyOrd = (address.into(), port.port, port.protocol.number());
                // Two services with one address: the first by name keeps it.
                if tables.services.contains_key(&key) {
                    continue;
                }
                let backends = of_family(&endpoints, address.is_ipv4());
                let count = backends.len() as u32;
                let id = if backends.is_empty() {
                    0
                } else {
                    interned.intern(backends.clone(), ids, epoch).0
                };
                for (slot, backend) in (0..).zip(&backends) {
                    let endpoint =
                        Endpoint { address: backend.ip().into(), port: backend.port().into() };
                    tables.backends.insert((id, slot), endpoint);
                }
                let affinity = service.affinity_seconds.unwrap_or(0);
                tables.services.insert(key, Service { backends: id, count, affinity });
            }
        }
    }
}

fn of_family(endpoints: &[ServiceEndpoint], v4: bool) -> Backends {
    let addresses = endpoints.iter().map(|endpoint| endpoint.address);
    let mut backends: Backends = addresses.filter(|address| address.is_ipv4() == v4).collect();
    backends.sort_unstable();
    backends.dedup();
    backends
}
