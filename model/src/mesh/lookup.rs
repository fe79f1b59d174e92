//! Questions that the mesh answers about its own objects.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{
    Labels, Mesh, NAMESPACE_NAME_LABEL, Name, Pod, PortRef, Protocol, Service, ServicePort,
    SliceEndpoint,
};

/// Namespaces whose pods are in the mesh only where a label says so: the cluster's own, and
/// Weft's.
pub const SYSTEM_NAMESPACES: [&str; 4] =
    ["kube-system", "kube-public", "kube-node-lease", "weft-system"];

/// An endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The node it is on, if that is known.
    pub node: Option<Arc<str>>,
}

impl Pod {
    /// Whether it has an address of its own: it has not finished, and is not on the host's
    /// network.
    pub fn is_own_peer(&self) -> bool {
        !self.finished && !self.host_network
    }

    /// Its first address of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .map(IpAddr::to_canonical)
            .find(|address| address.is_ipv4() == like.to_canonical().is_ipv4())
    }
}

impl Mesh {
    /// Labels of a namespace; one that is not known has its name as the only label.
    pub fn namespace_labels(&self, namespace: &Arc<str>) -> Labels {
        let mut labels =
            self.namespaces.get(namespace).map(|known| known.labels.clone()).unwrap_or_default();
        labels.insert(NAMESPACE_NAME_LABEL.into(), namespace.clone());
        labels
    }

    /// Whether the mesh carries the pod's traffic and policy acts on it. A pod on the host's
    /// network shares the node's identity, and is never in the mesh.
    pub fn is_enrolled(&self, pod: &Pod) -> bool {
        if !pod.is_own_peer() {
            return false;
        }
        pod.enrolled.or_else(|| self.namespaces.get(&pod.name.namespace)?.enrolled).unwrap_or_else(
            || {
                self.settings.enroll_by_default
                    && !SYSTEM_NAMESPACES.contains(&&*pod.name.namespace)
            },
        )
    }

    /// The name of the node that has this address, itself or by a pod on its network.
    pub fn node_at(&self, address: IpAddr) -> Option<Arc<str>> {
        let address = address.to_canonical();
        let has = |addresses: &[IpAddr]| addresses.iter().any(|own| own.to_canonical() == address);
        let node = self.nodes.values().find(|node| has(&node.addresses));
        node.map(|node| node.name.clone()).or_else(|| {
            self.pods
                .values()
                .find(|pod| pod.host_network && !pod.finished && has(&pod.addresses))
                .map(|pod| pod.node.clone())
        })
    }

    /// The pod that has this address for its own. Nodes go first; of several pods that claim
    /// one address, the first by name has it.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        if self.node_at(address).is_some() {
            return None;
        }
        let address = address.to_canonical();
        self.pods.values().find(|pod| {
            pod.is_own_peer() && pod.addresses.iter().any(|own| own.to_canonical() == address)
        })
    }

    /// The pod's principal, as Istio writes it: `cluster.local/ns/default/sa/web`.
    pub fn principal(&self, pod: &Pod) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.settings.trust_domain, pod.name.namespace, pod.service_account
        )
    }

    /// The pod's SPIFFE id.
    pub fn identity(&self, pod: &Pod) -> String {
        format!("spiffe://{}", self.principal(pod))
    }

    /// Where a port of a service is served: by its EndpointSlices if it has any, otherwise by
    /// the pods that its selector finds. Sorted, each once.
    pub fn endpoints(&self, service: &Service, port: &ServicePort) -> Vec<SocketAddr> {
        let mut addresses: Vec<_> = self
            .service_endpoints(service, port)
            .into_iter()
            .map(|endpoint| endpoint.address)
            .collect();
        addresses.dedup();
        addresses
    }

    /// As [`Self::endpoints`], with the nodes. Which of them a connection goes to depends on
    /// where it comes from, too: see [`crate::evaluate::backends`].
    pub fn service_endpoints(&self, service: &Service, port: &ServicePort) -> Vec<ServiceEndpoint> {
        let mut endpoints = match self.sliced_endpoints(service, port) {
            Some(endpoints) => endpoints,
            None => self.selected_endpoints(service, port).collect(),
        };
        endpoints.sort();
        endpoints.dedup();
        endpoints
    }

    /// Whether the pod is one of those that serve the service, ready or not.
    pub fn is_behind(&self, pod: &Pod, service: &Service) -> bool {
        if pod.name.namespace != service.name.namespace || pod.finished {
            return false;
        }
        let mut sliced = false;
        for slice in self.slices_of(service) {
            sliced = true;
            let has = |address: &IpAddr| pod.addresses.contains(address);
            if slice.endpoints.iter().any(|endpoint| endpoint.addresses.iter().any(has)) {
                return true;
            }
        }
        !sliced && service.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
    }

    fn slices_of<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = &'a super::EndpointSlice> {
        self.endpoint_slices.values().map(Arc::as_ref).filter(move |slice| {
            slice.name.namespace == service.name.namespace
                && slice.service.as_ref() == Some(&service.name.name)
        })
    }

    /// None if no slice names the service. Endpoints that are ready; if none is, those that
    /// still serve while they terminate (KEP-1669).
    fn sliced_endpoints(
        &self,
        service: &Service,
        port: &ServicePort,
    ) -> Option<Vec<ServiceEndpoint>> {
        let mut slices = self.slices_of(service).peekable();
        slices.peek()?;
        let mut found: Vec<(&SliceEndpoint, SocketAddr)> = Vec::new();
        for slice in slices {
            let Some((protocol, number)) = slice.ports.get(&port.name) else { continue };
            if *protocol != port.protocol {
                continue;
            }
            for endpoint in &slice.endpoints {
                if let Some(address) = endpoint.addresses.first() {
                    found.push((endpoint, SocketAddr::new(address.to_canonical(), *number)));
                }
            }
        }
        let chosen = |wanted: &dyn Fn(&SliceEndpoint) -> bool| -> Vec<ServiceEndpoint> {
            found
                .iter()
                .filter(|(endpoint, _)| wanted(endpoint))
                .map(|(endpoint, address)| ServiceEndpoint {
                    address: *address,
                    node: endpoint.node.clone(),
                })
                .collect()
        };
        let ready = chosen(&|endpoint| endpoint.ready || service.publish_not_ready);
        if !ready.is_empty() {
            return Some(ready);
        }
        Some(chosen(&|endpoint| endpoint.serving && endpoint.terminating))
    }

    /// The pods that a service's selector finds, in place of slices.
    pub fn selected_endpoints<'a>(
        &'a self,
        service: &'a Service,
        port: &'a ServicePort,
    ) -> impl Iterator<Item = ServiceEndpoint> + 'a {
        let namespace = &service.name.namespace;
        let first = Name { namespace: namespace.clone(), name: "".into() };
        service.selector.iter().flat_map(move |selector| {
            self.pods
                .range(first.clone()..)
                .take_while(move |(name, _)| name.namespace == *namespace)
                .map(|(_, pod)| pod)
                .filter(move |pod| !pod.finished && selector.matches(&pod.labels))
                .filter_map(move |pod| target(pod, port).map(|number| (pod, number)))
                .flat_map(|(pod, number)| {
                    pod.addresses.iter().map(move |address| ServiceEndpoint {
                        address: SocketAddr::new(address.to_canonical(), number),
                        node: Some(pod.node.clone()).filter(|node| !node.is_empty()),
                    })
                })
        })
    }
}

/// The number that a service's port has on a pod.
fn target(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => named(pod, name, port.protocol),
    }
}

fn named(pod: &Pod, name: &Arc<str>, protocol: Protocol) -> Option<u16> {
    pod.named_ports
        .iter()
        .find(|named| named.name == *name && named.protocol == protocol)
        .map(|named| named.port)
}
