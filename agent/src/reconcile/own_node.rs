//! The node that the agent runs on has more addresses than its Node says. Pods are reached from
//! their link's (a bridge's, a gateway's), and what comes from there is the node.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use weft_model::mesh::Mesh;

/// Adds the addresses of the node's interfaces to the mesh.
#[derive(Debug, Default)]
pub(super) struct OwnNode {
    addresses: BTreeSet<IpAddr>,
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

    /// The mesh in which the node has them, behind those that its Node says. Without a Node there
    /// is nothing to add to. What belongs to others by their manifests stays theirs: some proxies
    /// give every service's address to an interface of the node.
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
        let Some(own) = mesh.nodes.get(node) else { return mesh.clone() };
        let of_nodes = mesh.nodes.values().flat_map(|node| &node.addresses);
        let of_pods = mesh.pods.values().filter(|pod| !pod.finished).flat_map(|pod| &pod.addresses);
        let of_services = mesh.services.values().flat_map(|service| &service.addresses);
        let taken: BTreeSet<IpAddr> = of_nodes
            .chain(of_pods)
            .chain(of_services)
            .map(IpAddr::to_canonical)
            .filter(|address| self.addresses.contains(address))
            .collect();
        let more: Vec<IpAddr> = self.addresses.difference(&taken).copied().collect();
        if more.is_empty() {
            return mesh.clone();
        }
        tracing::debug!(addresses = ?more, "the node has more than its Node says");
        let mut own = own.clone();
        own.addresses.extend(more);
        let mut mesh = Mesh::clone(mesh);
        mesh.nodes.insert(own.name.clone(), own);
        Arc::new(mesh)
    }
}
