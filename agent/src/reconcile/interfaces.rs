//! Which interfaces of the host lead to which pod, and what addresses it has there. They can be found only once the pod has a
//! process in its network namespace, and each try enters that namespace: on a thread of its own,
//! later and later.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use weft_common::PodId;

use crate::kernel::{Kernel, PodNetwork};

/// Between the first tries for a new pod.
const SOONEST: Duration = Duration::from_millis(20);
/// Between tries for a pod that has none, and between looks at one that has.
const LATEST: Duration = Duration::from_secs(15);

/// What a look at a pod found.
#[derive(Debug)]
pub(super) struct Found {
    pub pod: PodId,
    pub network: Result<PodNetwork, String>,
}

#[derive(Debug)]
struct Look {
    cgroup: PathBuf,
    again: Instant,
    wait: Duration,
    under_way: bool,
}

/// Looks for the interfaces of pods.
#[derive(Debug)]
pub(super) struct Interfaces {
    pods: BTreeMap<PodId, Look>,
    found: mpsc::UnboundedSender<Found>,
}

impl Interfaces {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Found>) {
        let (found, receiver) = mpsc::unbounded_channel();
        (Self { pods: BTreeMap::new(), found }, receiver)
    }

    /// The pods to look at, with their cgroups.
    pub(super) fn set(&mut self, pods: BTreeMap<PodId, PathBuf>) {
        self.pods.retain(|pod, look| pods.get(pod) == Some(&look.cgroup));
        let now = Instant::now();
        for (pod, cgroup) in pods {
            self.pods.entry(pod).or_insert(Look {
                cgroup,
                again: now,
                wait: SOONEST,
                under_way: false,
            });
        }
    }

    /// When to call [`Self::look`] next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pods.values().filter(|look| !look.under_way).map(|look| look.again).min()
    }

    /// Begins the looks that are due.
    pub(super) fn look(&mut self) {
        let now = Instant::now();
        for (pod, look) in &mut self.pods {
            if look.under_way || look.again > now {
                continue;
            }
            look.under_way = true;
            let (pod, cgroup, found) = (*pod, look.cgroup.clone(), self.found.clone());
            tokio::task::spawn_blocking(move || {
                let network = Kernel::network_of(&cgroup).map_err(|error| error.to_string());
                // Nobody listens any more when the agent stops.
                let _stopped = found.send(Found { pod, network });
            });
        }
    }

    /// Takes note of what was found. Returns whether the pod is still of interest.
    pub(super) fn take(&mut self, found: &Found) -> bool {
        let Some(look) = self.pods.get_mut(&found.pod) else { return false };
        look.under_way = false;
        let settled = found.network.as_ref().is_ok_and(|found| !found.interfaces.is_empty());
        look.wait = if settled { LATEST } else { (look.wait * 2).min(LATEST) };
        look.again = Instant::now() + look.wait;
        true
    }
}
