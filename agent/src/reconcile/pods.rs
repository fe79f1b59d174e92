//! The pods of the node: their cgroups and interfaces, brought into the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use weft_common::{POD_HOST_NETWORK, PodId};
use weft_model::compile::Tables;

use super::interfaces::Found;
use super::{PREPARE, Reconciler};
use crate::kernel::{CgroupEvent, CgroupWatch};

impl Reconciler {
    pub(super) fn take_cgroups(&mut self, event: CgroupEvent, more: &mut CgroupWatch) {
        self.take_cgroup(event);
        while let Some(event) = more.try_next() {
            self.take_cgroup(event);
        }
        self.bind();
    }

    pub(super) fn take_cgroup(&mut self, event: CgroupEvent) {
        match &event {
            CgroupEvent::Lost(error) => {
                let root = self.pods_cgroup.display();
                self.problems.cgroups = Some(format!(
                    "the pods' cgroups at {root} cannot be watched: {error}; new pods stay denied \
                     until they can, which is tried again all the time"
                ));
            }
            CgroupEvent::Found => self.follow_pods_cgroup(),
            CgroupEvent::Added(_) | CgroupEvent::Removed(_) => {}
        }
        self.bindings.take(event);
    }

    /// The programs go with the pods' root, and come to the one that takes its place.
    pub(super) fn follow_pods_cgroup(&mut self) {
        match self.kernel.follow_pods_cgroup() {
            Ok(()) => {
                self.problems.cgroups = None;
                self.problems.attach = None;
            }
            Err(error) => {
                let problem = format!("{error}: pods are not restricted; it is tried again");
                if self.problems.attach.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                }
                self.problems.attach = Some(problem);
            }
        }
    }

    /// Lets the mesh's own pods talk before there is a policy, which comes by the agent's pod.
    pub(super) fn bind_own(&mut self) {
        for (cgroup, pod) in self.bindings.wanted(&Tables::default()) {
            if let Err(error) = self.kernel.bind_cgroup(cgroup, pod) {
                tracing::error!(%error, "the agent's own pod stays denied");
            }
        }
    }

    /// Lets pods talk that turn out to be on the node's network.
    pub(super) fn find_host_network(&mut self) {
        for (cgroup, pod) in self.bindings.find_host_network(self.kernel.bound_cgroups()) {
            tracing::info!(cgroup, "a pod that is not known yet is on the node's network");
            if let Err(error) = self.kernel.bind_cgroup(cgroup, pod) {
                tracing::error!(%error, "a pod on the node's network stays denied");
            }
        }
    }

    /// Tells the kernel which cgroup is which pod.
    pub(super) fn bind(&mut self) {
        let Some(tables) = self.tables.clone() else { return };
        let changes = self.bindings.changes(&tables, self.kernel.bound_cgroups());
        let mut problem = None;
        for cgroup in changes.unbind {
            if let Err(error) = self.kernel.unbind_cgroup(cgroup) {
                problem = Some(error.to_string());
            }
        }
        if !changes.bind.is_empty() {
            self.prepare_until = Instant::now() + PREPARE;
        }
        for (cgroup, pod) in changes.bind {
            tracing::debug!(cgroup, pod, "bound");
            if let Err(error) = self.kernel.bind_cgroup(cgroup, pod) {
                problem = Some(error.to_string());
            }
        }
        if let Some(problem) = &problem
            && self.problems.bindings.as_ref() != Some(problem)
        {
            tracing::error!("pods stay denied: {problem}");
        }
        self.problems.bindings = problem;
        self.follow_interfaces(&tables);
    }

    /// Which pods' interfaces are to be hooked.
    fn follow_interfaces(&mut self, tables: &Tables) {
        let pods: BTreeMap<PodId, PathBuf> = tables
            .pods
            .values()
            .filter(|pod| pod.entry.flags & POD_HOST_NETWORK == 0)
            .filter_map(|pod| {
                let cgroup = self.bindings.of(&pod.uid).next()?;
                Some((pod.id, cgroup.path.clone()))
            })
            .collect();
        let live: BTreeSet<PodId> = tables.pods.values().map(|pod| pod.id).collect();
        let stale: Vec<u32> = self
            .kernel
            .attached_interfaces()
            .iter()
            .filter(|(_, pod)| !live.contains(pod))
            .map(|(interface, _)| *interface)
            .collect();
        for interface in stale {
            if let Err(error) = self.kernel.detach_interface(interface) {
                tracing::debug!(%error, "an interface of a pod that has gone");
            }
        }
        self.own_node.retain_pods(tables.pods.values().map(|pod| &pod.uid));
        self.problems.interfaces.retain(|pod, _| pods.contains_key(pod));
        self.interfaces.set(pods);
    }

    pub(super) fn take_interfaces(&mut self, found: Found) {
        if !self.interfaces.take(&found) {
            return;
        }
        let pod = found.pod;
        if let Ok(network) = &found.network {
            self.take_pod_addresses(pod, &network.addresses);
        }
        let attached = found.network.and_then(|network| {
            for interface in network.interfaces {
                if self.kernel.is_attached(interface, pod) {
                    continue;
                }
                self.kernel.attach_interface(interface, pod).map_err(|error| error.to_string())?;
                tracing::debug!(interface, pod, "hooked");
            }
            Ok(())
        });
        match attached {
            Ok(()) => {
                self.problems.interfaces.remove(&pod);
            }
            Err(error) => {
                let known = self.problems.interfaces.insert(pod, error.clone());
                if known.as_ref() != Some(&error) {
                    tracing::warn!(pod, error, "frames of this pod are not checked");
                }
            }
        }
    }

    /// A pod may send before the API server tells its addresses, which its kubelet reports a second
    /// or two after its first container has begun.
    fn take_pod_addresses(&mut self, pod: PodId, addresses: &BTreeSet<IpAddr>) {
        let Some(tables) = &self.tables else { return };
        let Some((name, _)) = tables.pods.iter().find(|(_, local)| local.id == pod) else { return };
        let Some(pod) = self.view.mesh.pods.get(name) else { return };
        if pod.addresses.is_empty() && self.own_node.set_pod(&pod.uid, addresses) {
            self.reconcile();
        }
    }
}
