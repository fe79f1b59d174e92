//! Which cgroup is which pod.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_common::{POD_OF_THE_MESH, PodId};
use weft_model::compile::Tables;
use weft_model::mesh::{Mesh, Name, Pod};

use super::host_network::HostNetwork;
use crate::kernel::{CgroupEvent, CgroupId, PodCgroup};

/// The cgroups of pods that there are now.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    cgroups: BTreeMap<CgroupId, PodCgroup>,
    /// Cgroups of the agent and the proxy: a pod's cgroup around one of them is the mesh's own.
    own: Vec<PathBuf>,
    host_network: HostNetwork,
}

/// What is to be done for the kernel to know the cgroups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub bind: Vec<(CgroupId, PodId)>,
    pub unbind: Vec<CgroupId>,
}

impl Bindings {
    /// Without any pod; `own` are the cgroups of the agent and the proxy.
    pub(super) fn new(own: Vec<PathBuf>) -> Self {
        Self { own, ..Self::default() }
    }

    pub(super) fn take(&mut self, event: CgroupEvent) {
        match event {
            CgroupEvent::Added(cgroup) => {
                self.cgroups.insert(cgroup.id, cgroup);
            }
            CgroupEvent::Removed(cgroup) => {
                self.cgroups.remove(&cgroup.id);
                self.host_network.forget(cgroup.id);
            }
            CgroupEvent::Lost(_) | CgroupEvent::Found => {}
        }
    }

    /// What every cgroup is, as far as it is known.
    pub(super) fn wanted(&self, tables: &Tables) -> BTreeMap<CgroupId, PodId> {
        let by_uid: BTreeMap<&Arc<str>, PodId> =
            tables.pods.values().map(|pod| (&pod.uid, pod.id)).collect();
        self.cgroups
            .values()
            .filter_map(|cgroup| {
                if self.is_own(&cgroup.path) {
                    return Some((cgroup.id, POD_OF_THE_MESH));
                }
                let of_the_node =
                    || self.host_network.contains(cgroup.id).then_some(POD_OF_THE_MESH);
                let pod = by_uid.get(&cgroup.uid).copied().or_else(of_the_node);
                pod.map(|pod| (cgroup.id, pod))
            })
            .collect()
    }

    /// Finds pods on the node's network among the cgroups that the kernel does not know. Returns
    /// those that it is to know, as the mesh's own: left alone.
    pub(super) fn find_host_network(
        &mut self,
        bound: &BTreeMap<CgroupId, PodId>,
    ) -> Vec<(CgroupId, PodId)> {
        let unknown = self.cgroups.values().filter(|cgroup| !bound.contains_key(&cgroup.id));
        let unknown: Vec<&PodCgroup> = unknown.collect();
        let found = self.host_network.look(&unknown);
        found.into_iter().map(|cgroup| (cgroup, POD_OF_THE_MESH)).collect()
    }

    /// The pods of a node whose cgroups the kernel knows already, with their ids.
    pub(super) fn pods<'a>(
        &self,
        mesh: &'a Mesh,
        node: &str,
        bound: &BTreeMap<CgroupId, PodId>,
    ) -> Vec<(&'a Arc<Pod>, PodId)> {
        let by_uid: BTreeMap<&Arc<str>, PodId> = self
            .cgroups
            .values()
            .filter_map(|cgroup| Some((&cgroup.uid, *bound.get(&cgroup.id)?)))
            .filter(|(_, pod)| *pod != POD_OF_THE_MESH)
            .collect();
        mesh.pods
            .values()
            .filter(|pod| *pod.node == *node)
            .filter_map(|pod| Some((pod, *by_uid.get(&pod.uid)?)))
            .collect()
    }

    /// What is to be done, where `bound` is what the kernel knows.
    pub(super) fn changes(&self, tables: &Tables, bound: &BTreeMap<CgroupId, PodId>) -> Changes {
        let wanted = self.wanted(tables);
        Changes {
            bind: wanted
                .iter()
                .filter(|(cgroup, pod)| bound.get(cgroup) != Some(pod))
                .map(|(cgroup, pod)| (*cgroup, *pod))
                .collect(),
            unbind: bound.keys().filter(|cgroup| !wanted.contains_key(cgroup)).copied().collect(),
        }
    }

    /// The cgroups of a pod.
    pub(super) fn of<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a PodCgroup> {
        self.cgroups.values().filter(move |cgroup| *cgroup.uid == *uid)
    }

    /// Pods of the tables that have no cgroup (yet).
    pub(super) fn pending<'a>(&self, tables: &'a Tables) -> Vec<&'a Name> {
        let known: BTreeSet<&Arc<str>> = self.cgroups.values().map(|cgroup| &cgroup.uid).collect();
        tables
            .pods
            .iter()
            .filter(|(_, pod)| !known.contains(&pod.uid))
            .map(|(name, _)| name)
            .collect()
    }

    /// Cgroups of pods that the tables do not have (yet).
    pub(super) fn unknown(&self, tables: &Tables) -> Vec<&PodCgroup> {
        let wanted = self.wanted(tables);
        self.cgroups.values().filter(|cgroup| !wanted.contains_key(&cgroup.id)).collect()
    }

    fn is_own(&self, pod: &Path) -> bool {
        self.own.iter().any(|own| own.starts_with(pod))
    }
}
