//! The node that the agent runs on has more addresses than its Node says. Pods are reached from
//! their link's (a bridge's, a gateway's), and what comes from there is the node. And its pods have
//! theirs before anybody reports them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use weft_model::mesh::{Mesh, Pod};

/// Adds the addresses of the node's interfaces, and of its pods', to the mesh.
#[derive(Debug, Default)]
pub(super) struct OwnNode {
    addresses: BTreeSet<IpAddr>,
    /// Addresses of pods, by uid, until their manifests say them.
    pods: BTreeMap<Arc<str>, BTreeSet<IpAddr>>,
    /// What was last made of which mesh.
    made: Option<(Arc<Mesh>, Arc<Mesh>)>,
}

impl OwnNode {
    /// Takes the addresses of the node's interfaces. Returns whether they are others than before.
    pub(super) fn set(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        if self.addresses == addresses {
            return false;
        }
        self.addresses = addresses;
        self.made = None;
        true
    }

    /// Takes the addresses that a pod's interfaces have. Returns whether they are others than
    /// before.
    pub(super) fn set_pod(&mut self, uid: &Arc<str>, addresses: &BTreeSet<IpAddr>) -> bool {
        let known = self.pods.get(uid);
        if known.map_or(addresses.is_empty(), |known| known == addresses) {
            return false;
        }
        self.pods.insert(uid.clone(), addresses.clone());
        self.made = None;
        true
    }

    /// Forgets all pods but these.
    pub(super) fn retain_pods<'a>(&mut self, uids: impl Iterator<Item = &'a Arc<str>>) {
        if !self.pods.is_empty() {
            let uids: BTreeSet<&Arc<str>> = uids.collect();
            self.pods.retain(|uid, _| uids.contains(uid));
        }
    }

    /// The mesh in which the node has them, behind those that its Node says, and its pods theirs
    /// where their manifests say none yet. Without a Node there is nothing to add to. What belongs to
    /// others by their manifests stays theirs: some proxies give every service's address to an
    /// interface of the node, and a pod must not pass for another.
    pub(super) fn added_to(&mut self, mesh: &Arc<Mesh>, node: &str) -> Arc<Mesh> {
        if let Some((of, made)) = &self.made
            && Arc::ptr_eq(of, mesh)
        {
            return made.clone();
        }
        let made = self.make(mesh, node);
        self.made = Some((mesh.clone(), made.clone()));
        made
    }

    fn make(&self, mesh: &Arc<Mesh>, node: &str) -> Arc<Mesh> {
        let of_nodes = mesh.nodes.values().flat_map(|node| &node.addresses);
        let of_pods = mesh.pods.values().filter(|pod| !pod.finished).flat_map(|pod| &pod.addresses);
        let of_services = mesh.services.values().flat_map(|service| &service.addresses);
        let wanted: BTreeSet<IpAddr> =
            self.pods.values().flatten().chain(&self.addresses).copied().collect();
        let taken: BTreeSet<IpAddr> = of_nodes
            .chain(of_pods)
            .chain(of_services)
            .map(IpAddr::to_canonical)
            .filter(|address| wanted.contains(address))
            .collect();

        let own = mesh.nodes.get(node).and_then(|own| {
            let more: Vec<IpAddr> = self.addresses.difference(&taken).copied().collect();
            if more.is_empty() {
                return None;
            }
            tracing::debug!(addresses = ?more, "the node has more than its Node says");
            let mut own = own.clone();
            own.addresses.extend(more);
            Some(own)
        });
        let pods: Vec<Pod> = mesh
            .pods
            .values()
            .filter(|pod| *pod.node == *node && pod.addresses.is_empty() && !pod.host_network)
            .filter_map(|pod| {
                let found = self.pods.get(&pod.uid)?;
                let claims = |address: &IpAddr| {
                    self.pods.values().filter(|found| found.contains(address)).count()
                };
                let free = |address: &&IpAddr| {
                    !taken.contains(*address)
                        && !self.addresses.contains(*address)
                        && claims(address) == 1
                };
                let addresses: Vec<IpAddr> = found.iter().filter(free).copied().collect();
                (!addresses.is_empty()).then(|| Pod { addresses, ..Pod::clone(pod) })
            })
            .collect();
        if own.is_none() && pods.is_empty() {
            return mesh.clone();
        }
        let mut mesh = Mesh::clone(mesh);
        mesh.nodes.extend(own.map(|own| (own.name.clone(), own)));
        mesh.pods.extend(pods.into_iter().map(|pod| (pod.name.clone(), Arc::new(pod))));
        Arc::new(mesh)
    }
}
