//! What is in force on the node, published whole, and the names that ids and addresses had when
//! older policies were in force.

mod addresses;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use weft_common::PodId;
use weft_model::compile::Tables;
use weft_model::mesh::{Mesh, Name, Origin, Pod};

use crate::conditions::report::Versions;
use crate::identity::SpiffeId;

pub use addresses::Addresses;
use addresses::History;

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

impl PodName {
    fn of(trust_domain: &str, pod: &Pod) -> Self {
        let identity = SpiffeId::new(trust_domain, &pod.name.namespace, &pod.service_account);
        Self { name: pod.name.clone(), identity }
    }
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
    history: Mutex<History>,
    /// Which objects of weft.dev are in force; none before the first policy has been applied.
    versions: watch::Sender<Option<Versions>>,
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
                let named = PodName::of(&mesh.settings.trust_domain, pod);
                ids.pods.insert(local.id, Arc::new(named));
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
        self.history().push(snapshot.generation, &snapshot.mesh);
        let snapshot = Arc::new(snapshot);
        // Whoever is told of versions may look at what they came with.
        self.current.store(Some(snapshot.clone()));
        self.versions.send_if_modified(|known| {
            let changed = known.as_deref() != Some(&snapshot.mesh.versions);
            if changed {
                *known = Some(Arc::new(snapshot.mesh.versions.clone()));
            }
            changed
        });
    }

    /// What is in force; none before the first policy has been applied.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// Which objects of weft.dev are in force, now and whenever that changes.
    pub fn versions(&self) -> watch::Receiver<Option<Versions>> {
        self.versions.subscribe()
    }

    /// Who had which address under a generation (or the one next to it that is remembered).
    pub fn addresses(&self, generation: u32) -> Arc<Addresses> {
        Arc::new(self.history().of(generation).unwrap_or_default())
    }

    fn history(&self) -> MutexGuard<'_, History> {
        // Nothing that holds the lock leaves it half-changed.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
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
