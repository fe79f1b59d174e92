//! Where a connection to a service's address goes.
//!
//! Kubernetes, "Virtual IPs and Service Proxies": the ready endpoints; where there is none, those
//! that terminate and still serve (KEP-1669); of those for the whole cluster the ones that hints
//! give the node or its zone, if every ready endpoint has a hint of that kind and one is for it
//! (KEP-2433, KEP-3015); with `internalTrafficPolicy: Local` only the node's own. The external
//! traffic policy does not narrow what pods reach at a node's or an external address, as in
//! kube-proxy.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::{Mesh, Protocol, Service, ServicePort, SliceEndpoint, ZONE_LABEL};

/// The backends of a connection that a pod on `node` opens: sorted, each once, of the address's
/// family. None where no service is there.
pub fn backends(
    mesh: &Mesh,
    node: &str,
    address: IpAddr,
    port: u16,
    protocol: Protocol,
) -> Option<Vec<SocketAddr>> {
    let address = address.to_canonical();
    let has = |addresses: &[IpAddr]| addresses.iter().any(|own| own.to_canonical() == address);
    let at_node = mesh.nodes.values().any(|node| has(&node.addresses));
    let find = |wanted: &dyn Fn(&Service, &ServicePort) -> bool| {
        mesh.services.values().find_map(|service| {
            let of_protocol = service.ports.iter().filter(|port| port.protocol == protocol);
            let mut meant = of_protocol.filter(|port| wanted(service, port));
            meant.next().map(|port| (service, port))
        })
    };
    let (service, service_port, local) = if let Some((service, own)) =
        find(&|service, own| has(&service.addresses) && own.port == port)
    {
        (service, own, service.internal_local)
    } else if let Some((service, own)) =
        find(&|service, own| has(&service.external) && own.port == port)
    {
        (service, own, false)
    } else {
        let (service, own) = find(&|_, own| at_node && own.node_port == Some(port))?;
        (service, own, false)
    };

    let slices: Vec<_> = mesh
        .endpoint_slices
        .values()
        .filter(|slice| slice.name.namespace == service.name.namespace)
        .filter(|slice| slice.service.as_ref() == Some(&service.name.name))
        .collect();
    let mut chosen: Vec<SocketAddr> = if slices.is_empty() {
        let mut selected: Vec<_> = mesh.selected_endpoints(service, service_port).collect();
        selected.retain(|endpoint| !local || endpoint.node.as_deref() == Some(node));
        selected.into_iter().map(|endpoint| endpoint.address).collect()
    } else {
        let mut endpoints: Vec<(&SliceEndpoint, SocketAddr)> = Vec::new();
        for slice in slices {
            let Some((protocol, number)) = slice.ports.get(&service_port.name) else { continue };
            for endpoint in &slice.endpoints {
                let is_meant = !local || endpoint.node.as_deref() == Some(node);
                if let (Some(first), true) = (endpoint.addresses.first(), is_meant)
                    && *protocol == service_port.protocol
                {
                    endpoints.push((endpoint, SocketAddr::new(first.to_canonical(), *number)));
                }
            }
        }
        let zone = mesh.nodes.get(node).and_then(|node| node.labels.get(ZONE_LABEL));
        let serving = serving(&endpoints, service, (!local).then_some((node, zone)));
        serving.into_iter().map(|(_, address)| address).collect()
    };
    chosen.retain(|backend| backend.is_ipv4() == address.is_ipv4());
    chosen.sort();
    chosen.dedup();
    Some(chosen)
}

type Found<'a> = (&'a SliceEndpoint, SocketAddr);

fn serving<'a>(
    endpoints: &[Found<'a>],
    service: &Service,
    place: Option<(&str, Option<&Arc<str>>)>,
) -> Vec<Found<'a>> {
    let with = |wanted: &dyn Fn(&SliceEndpoint) -> bool, of: &[Found<'a>]| -> Vec<Found<'a>> {
        of.iter().filter(|(endpoint, _)| wanted(endpoint)).copied().collect()
    };
    let ready = with(&|endpoint| endpoint.ready || service.publish_not_ready, endpoints);
    if ready.is_empty() {
        return with(&|endpoint| endpoint.serving && endpoint.terminating, endpoints);
    }
    let Some((node, zone)) = place else { return ready };
    let for_node = with(&|endpoint| endpoint.nodes.iter().any(|name| **name == *node), &ready);
    if !for_node.is_empty() && ready.iter().all(|(endpoint, _)| !endpoint.nodes.is_empty()) {
        return for_node;
    }
    let for_zone = with(
        &|endpoint| zone.is_some_and(|zone| endpoint.zones.iter().any(|name| name == zone)),
        &ready,
    );
    if !for_zone.is_empty() && ready.iter().all(|(endpoint, _)| !endpoint.zones.is_empty()) {
        return for_zone;
    }
    ready
}

#[cfg(test)]
mod tests;
