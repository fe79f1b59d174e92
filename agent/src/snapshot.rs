//! What is in force on the node, published whole, and the names that ids and addresses had when
//! older policies were in force.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use weft_common::PodId;
use weft_model::compile::Tables;
use weft_model::mesh::{Mesh, Name, Origin};

use crate::identity::SpiffeId;

/// Generations whose addresses are remembered.
const REMEMBERED_GENERATIONS: usize = 32;
/// Rules and pods that are remembered after they have gone.
const REMEMBERED_IDS: usize = 65_536;

/// A policy that is in force.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its generation in the kernel.
    pub generation: u32,
    /// When it was applied.
    pub applied: SystemTime,
    /// The mesh that it was compiled from.
    pub mesh: Arc<Mesh>,
    /// The tables in the kernel.
    pub tables: Arc<Tables>,
}

/// A pod, as flows show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Namespace and name.
    pub name: Name,
    /// What its certificate says.
    pub identity: SpiffeId,
}

/// Who had which address under one generation.
#[derive(Debug, Default)]
pub struct Addresses {
    generation: u32,
    pods: HashMap<IpAddr, Arc<PodName>>,
    nodes: HashMap<IpAddr, Arc<str>>,
    services: HashMap<IpAddr, Name>,
}

impl Addresses {
    fn new(generation: u32, mesh: &Mesh) -> Self {
        let mut addresses = Self { generation, ..Self::default() };
        // In reverse, for the first by name of those that claim an address has it.
        for pod in mesh.pods.values().rev().filter(|pod| pod.is_own_peer()) {
            let named = Arc::new(pod_name(mesh, pod));
            for address in &pod.addresses {
                addresses.pods.insert(address.to_canonical(), named.clone());
            }
        }
        for node in mesh.nodes.values().rev() {
            for address in &node.addresses {
                addresses.nodes.insert(address.to_canonical(), node.name.clone());
            }
        }
        for service in mesh.services.values().rev() {
            for address in &service.addresses {
                addresses.services.insert(address.to_canonical(), service.name.clone());
            }
        }
        addresses
    }

    /// The pod that had the address.
    pub fn pod(&self, address: IpAddr) -> Option<&Arc<PodName>> {
        self.pods.get(&address)
    }

    /// The node that had the address.
    pub fn node(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.nodes.get(&address)
    }

    /// The service that had the address.
    pub fn service(&self, address: IpAddr) -> Option<&Name> {
        self.services.get(&address)
    }
}

fn pod_name(mesh: &Mesh, pod: &weft_model::mesh::Pod) -> PodName {
    let identity =
        SpiffeId::new(&mesh.settings.trust_domain, &pod.name.namespace, &pod.service_account);
    PodName { name: pod.name.clone(), identity }
}

/// What ids have stood for. Ids are never used again with another meaning.
#[derive(Debug, Default)]
struct Ids {
    rules: BTreeMap<u32, Arc<Origin>>,
    pods: BTreeMap<PodId, Arc<PodName>>,
}

/// The policy in force, and the memory of those before it.
#[derive(Debug, Default)]
pub struct Snapshots {
    current: ArcSwapOption<Snapshot>,
    ids: Mutex<Ids>,
    history: ArcSwap<VecDeque<Arc<Addresses>>>,
}

impl Snapshots {
    /// Learns what the ids in tables stand for. Comes before the tables are in the kernel, so
    /// that no event speaks of an id that is not known.
    pub fn announce(&self, mesh: &Mesh, tables: &Tables) {
        let mut ids = self.ids();
        for (id, origin) in tables.rules.iter() {
            if !ids.rules.contains_key(id) {
                ids.rules.insert(*id, Arc::new(origin.clone()));
            }
        }
        for (name, local) in &tables.pods {
            if let Some(pod) = mesh.pods.get(name) {
                ids.pods.insert(local.id, Arc::new(pod_name(mesh, pod)));
            }
        }
        let Ids { rules, pods } = &mut *ids;
        forget(rules, |id| tables.rules.contains_key(id));
        let live: std::collections::HashSet<PodId> =
            tables.pods.values().map(|pod| pod.id).collect();
        forget(pods, |id| live.contains(id));
    }

    /// Makes a snapshot the current one.
    pub fn publish(&self, snapshot: Snapshot) {
        let mut history = VecDeque::clone(&self.history.load());
        if history.len() >= REMEMBERED_GENERATIONS {
            history.pop_front();
        }
        history.push_back(Arc::new(Addresses::new(snapshot.generation, &snapshot.mesh)));
        self.history.store(Arc::new(history));
        self.current.store(Some(Arc::new(snapshot)));
    }

    /// What is in force; none before the first policy has been applied.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// Who had which address under a generation (or the one next to it that is remembered).
    pub fn addresses(&self, generation: u32) -> Arc<Addresses> {
        let history = self.history.load();
        history
            .iter()
            .rev()
            .find(|addresses| addresses.generation <= generation)
            .or_else(|| history.front())
            .cloned()
            .unwrap_or_default()
    }

    /// The rule that an id stands or stood for.
    pub fn rule(&self, id: u32) -> Option<Arc<Origin>> {
        self.ids().rules.get(&id).cloned()
    }

    /// The pod that an id stands or stood for.
    pub fn pod(&self, id: PodId) -> Option<Arc<PodName>> {
        self.ids().pods.get(&id).cloned()
    }

    fn ids(&self) -> MutexGuard<'_, Ids> {
        // Nothing that holds the lock leaves the maps half-changed.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the oldest (lowest) ids that are not live, where there are too many.
fn forget<T>(ids: &mut BTreeMap<u32, T>, live: impl Fn(&u32) -> bool) {
    let surplus = ids.len().saturating_sub(REMEMBERED_IDS);
    let gone: Vec<u32> = ids.keys().filter(|id| !live(id)).take(surplus).copied().collect();
    for id in gone {
        ids.remove(&id);
    }
}
