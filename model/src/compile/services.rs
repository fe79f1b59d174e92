//! Service addresses and their backends.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weft_common::{Endpoint, Service as ServiceEntry};

use super::ids::{Epoch, Ids, Interned};
use super::{ServiceKeyOrd, Tables};
use crate::mesh::{EndpointSlice, Mesh, Service, ServicePort, ZONE_LABEL};

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
    let chooser = Chooser::of(mesh, node);
    let mut put = |service: &Service, port: &ServicePort, at: (IpAddr, u16), from: &Backends| {
        let address = at.0.to_canonical();
        let key: ServiceKeyOrd = (address.into(), at.1, port.protocol.number());
        // Two services with one address: the first by name keeps it.
        if tables.services.contains_key(&key) {
            return;
        }
        let backends: Backends =
            from.iter().filter(|one| one.is_ipv4() == address.is_ipv4()).copied().collect();
        let count = backends.len() as u32;
        let mut id = 0;
        if count > 0 {
            let entries: Vec<Endpoint> = backends
                .iter()
                .map(|one| Endpoint { address: one.ip().into(), port: one.port().into() })
                .collect();
            let (interned, _) = interned.intern(backends, ids, epoch);
            id = interned;
            if !tables.backends.contains_key(&(id, 0)) {
                tables.backends.extend((0..).zip(entries).map(|(slot, one)| ((id, slot), one)));
            }
        }
        let affinity = service.affinity_seconds.unwrap_or(0);
        tables.services.insert(key, ServiceEntry { backends: id, count, affinity });
    };
    let ports = |wanted: fn(&Service) -> bool| {
        let services = mesh.services.values().filter(move |service| wanted(service));
        services.flat_map(|service| service.ports.iter().map(move |port| (service, port)))
    };
    // A cluster's own address goes before an external one, and that before a node's.
    for (service, port) in ports(|service| !service.addresses.is_empty()) {
        let backends = chooser.backends(service, port, service.internal_local);
        for address in &service.addresses {
            put(service, port, (*address, port.port), &backends);
        }
    }
    for (service, port) in ports(|service| !service.external.is_empty()) {
        let backends = chooser.backends(service, port, false);
        for address in &service.external {
            put(service, port, (*address, port.port), &backends);
        }
    }
    for (service, port) in ports(|_| true) {
        let Some(node_port) = port.node_port else { continue };
        let backends = chooser.backends(service, port, false);
        for address in mesh.nodes.values().flat_map(|node| &node.addresses) {
            put(service, port, (*address, node_port), &backends);
        }
    }
}

/// An endpoint that may be chosen.
struct Candidate<'a> {
    address: SocketAddr,
    ready: bool,
    drains: bool,
    zones: &'a [Arc<str>],
    nodes: &'a [Arc<str>],
}

/// Chooses the endpoints that connections from one node go to.
struct Chooser<'a> {
    mesh: &'a Mesh,
    node: &'a str,
    zone: Option<&'a Arc<str>>,
    /// By namespace and service.
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
}

impl<'a> Chooser<'a> {
    fn of(mesh: &'a Mesh, node: &'a str) -> Self {
        let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
        for slice in mesh.endpoint_slices.values() {
            if let Some(service) = &slice.service {
                slices.entry((&slice.name.namespace, service)).or_default().push(slice);
            }
        }
        let zone = mesh.nodes.get(node).and_then(|node| node.labels.get(ZONE_LABEL));
        Self { mesh, node, zone, slices }
    }

    fn backends(&self, service: &Service, port: &ServicePort, local: bool) -> Backends {
        let key = (&*service.name.namespace, &*service.name.name);
        let mut backends = match self.slices.get(&key) {
            Some(slices) => {
                let candidates = slices
                    .iter()
                    .filter(|slice| {
                        let number = slice.ports.get(&port.name);
                        number.is_some_and(|(protocol, _)| *protocol == port.protocol)
                    })
                    .flat_map(|slice| self.candidates(slice, service, port, local));
                self.choose(candidates.collect(), local)
            }
            None => self
                .mesh
                .selected_endpoints(service, port)
                .filter(|one| !local || one.node.as_deref() == Some(self.node))
                .map(|one| one.address)
                .collect(),
        };
        backends.sort_unstable();
        backends.dedup();
        backends
    }

    fn candidates<'s>(
        &'s self,
        slice: &'s EndpointSlice,
        service: &'s Service,
        port: &'s ServicePort,
        local: bool,
    ) -> impl Iterator<Item = Candidate<'s>> {
        let number = slice.ports.get(&port.name).map_or(0, |(_, number)| *number);
        slice
            .endpoints
            .iter()
            .filter(move |one| !local || one.node.as_deref() == Some(self.node))
            .filter_map(move |one| {
                Some(Candidate {
                    address: SocketAddr::new(one.addresses.first()?.to_canonical(), number),
                    ready: one.ready || service.publish_not_ready,
                    drains: one.serving && one.terminating,
                    zones: &one.zones,
                    nodes: &one.nodes,
                })
            })
    }

    fn choose(&self, mut candidates: Vec<Candidate<'_>>, local: bool) -> Backends {
        if candidates.iter().any(|one| one.ready) {
            candidates.retain(|one| one.ready);
            let for_node = |one: &Candidate<'_>| one.nodes.iter().any(|node| **node == *self.node);
            let for_zone = |one: &Candidate<'_>| {
                Some(one.zones).zip(self.zone).is_some_and(|(zones, zone)| zones.contains(zone))
            };
            if !local && hinted(&candidates, |one| one.nodes) && candidates.iter().any(for_node) {
                candidates.retain(for_node);
            } else if !local
                && hinted(&candidates, |one| one.zones)
                && candidates.iter().any(for_zone)
            {
                candidates.retain(for_zone);
            }
        } else {
            candidates.retain(|one| one.drains);
        }
        candidates.into_iter().map(|one| one.address).collect()
    }
}

/// Whether all have a hint: otherwise none is to be trusted (KEP-2433).
fn hinted<'c>(
    candidates: &[Candidate<'c>],
    hints: impl Fn(&Candidate<'c>) -> &'c [Arc<str>],
) -> bool {
    candidates.iter().all(|one| !hints(one).is_empty())
}
