//! Who had which address under which policy.
//!
//! A cluster has many pods, and generation follows on generation: what is remembered of the older
//! ones is what has changed since.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use weft_model::mesh::{Mesh, Name, Pod};

use super::PodName;

/// Generations whose addresses are remembered.
pub(super) const REMEMBERED_GENERATIONS: usize = 32;

type Pods = HashMap<IpAddr, Arc<Pod>>;
/// The pods that addresses had, where they have another now, or none.
type Changes = HashMap<IpAddr, Option<Arc<Pod>>>;

/// Who had which address under one generation.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    pub(super) generation: u32,
    trust_domain: Arc<str>,
    nodes: Arc<HashMap<IpAddr, Arc<str>>>,
    services: Arc<HashMap<IpAddr, Name>>,
    /// How the pods were before each of the generations that came after, the oldest first.
    changes: Vec<Arc<Changes>>,
    pods: Arc<Pods>,
}

impl Addresses {
    /// The pod that had the address.
    pub fn pod(&self, address: IpAddr) -> Option<PodName> {
        let changed = self.changes.iter().find_map(|changes| changes.get(&address));
        let pod = changed.map_or_else(|| self.pods.get(&address), Option::as_ref)?;
        Some(PodName::of(&self.trust_domain, pod))
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

/// The addresses of the last generations.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Of each generation, the oldest first, without its pods and changes.
    generations: VecDeque<Addresses>,
    /// Between a generation and the one after it: one less.
    changes: VecDeque<Arc<Changes>>,
    /// Of the last.
    pods: Arc<Pods>,
    mesh: Option<Arc<Mesh>>,
}

impl History {
    /// Takes note of a generation.
    pub(super) fn push(&mut self, generation: u32, mesh: &Arc<Mesh>) {
        let same_pods = self.mesh.as_ref().is_some_and(|last| is_same(&last.pods, &mesh.pods));
        let mut changes = Arc::default();
        if !same_pods {
            let pods = pods(mesh);
            changes = Arc::new(changed(&self.pods, &pods));
            self.pods = Arc::new(pods);
        }
        let last = self.generations.back();
        let nodes = nodes(mesh);
        let services = services(mesh);
        let next = Addresses {
            generation,
            trust_domain: mesh.settings.trust_domain.clone(),
            nodes: match last {
                Some(last) if *last.nodes == nodes => last.nodes.clone(),
                _ => Arc::new(nodes),
            },
            services: match last {
                Some(last) if *last.services == services => last.services.clone(),
                _ => Arc::new(services),
            },
            ..Addresses::default()
        };
        if last.is_some() {
            self.changes.push_back(changes);
        }
        self.generations.push_back(next);
        if self.generations.len() > REMEMBERED_GENERATIONS {
            self.generations.pop_front();
            self.changes.pop_front();
        }
        self.mesh = Some(mesh.clone());
    }

    /// Of a generation, or the one next to it that is remembered.
    pub(super) fn of(&self, generation: u32) -> Option<Addresses> {
        let found = self.generations.iter().rposition(|known| known.generation <= generation);
        let index = found.unwrap_or(0);
        let known = self.generations.get(index)?.clone();
        let changes = self.changes.iter().skip(index).filter(|changes| !changes.is_empty());
        Some(Addresses { changes: changes.cloned().collect(), pods: self.pods.clone(), ..known })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.generations.len()
    }
}

/// Whether they are the very same pods: equal ones may be told apart.
fn is_same(before: &BTreeMap<Name, Arc<Pod>>, after: &BTreeMap<Name, Arc<Pod>>) -> bool {
    before.len() == after.len()
        && before.values().zip(after.values()).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn changed(before: &Pods, after: &Pods) -> Changes {
    let mut changes = Changes::new();
    for (address, pod) in after {
        let known = before.get(address);
        if known.is_none_or(|known| known.name != pod.name || known.uid != pod.uid) {
            changes.insert(*address, known.cloned());
        }
    }
    let gone = before.iter().filter(|(address, _)| !after.contains_key(address));
    changes.extend(gone.map(|(address, pod)| (*address, Some(pod.clone()))));
    changes
}

fn pods(mesh: &Mesh) -> Pods {
    let mut pods = Pods::with_capacity(mesh.pods.len());
    // The first by name of those that claim an address has it.
    for pod in mesh.pods.values().filter(|pod| pod.is_own_peer()) {
        for address in &pod.addresses {
            pods.entry(address.to_canonical()).or_insert_with(|| pod.clone());
        }
    }
    pods.shrink_to_fit();
    pods
}

fn nodes(mesh: &Mesh) -> HashMap<IpAddr, Arc<str>> {
    let mut nodes = HashMap::new();
    for node in mesh.nodes.values() {
        for address in &node.addresses {
            nodes.entry(address.to_canonical()).or_insert_with(|| node.name.clone());
        }
    }
    nodes
}

fn services(mesh: &Mesh) -> HashMap<IpAddr, Name> {
    let mut services = HashMap::with_capacity(mesh.services.len());
    for service in mesh.services.values() {
        for address in service.addresses.iter().chain(&service.external) {
            services.entry(address.to_canonical()).or_insert_with(|| service.name.clone());
        }
    }
    services
}
