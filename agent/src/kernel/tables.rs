//! Bringing compiled tables into the maps, entry by entry, so that at no time an address or port
//! resolves to anything but the old or the new decision (docs/design.md, "Tables").

use std::borrow::Cow;
use std::collections::BTreeMap;

use aya::maps::MapData;
use weft_common::{
    Address, AddressEntry, BackendKey, Decision, Endpoint, Pod, PodId, PodUse, PolicyEntry,
    PolicyKey, PortKey, Service, ServiceKey,
};
use weft_model::compile::{
    BackendKeyOrd, InForce, PolicyKeyOrd, ServiceKeyOrd, Tables, backend_key, bridge, policy_key,
    service_key,
};

use super::cgroups::CgroupId;
use super::error::{ApplyError, OpenError};
use super::table::Table;

/// What a change has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries written.
    pub written: usize,
    /// Entries deleted.
    pub deleted: usize,
    /// The generation that is in force now.
    pub generation: u32,
}

type Policy = BTreeMap<PolicyKeyOrd, PolicyEntry>;

/// The maps that only the agent writes, with copies of what is in them.
#[derive(Debug)]
pub(super) struct KernelTables {
    pub ports: Table<(u8, PortKey), PortKey, Decision>,
    pub backends: Table<BackendKeyOrd, BackendKey, Endpoint>,
    pub policy: Table<PolicyKeyOrd, PolicyKey, PolicyEntry>,
    pub services: Table<ServiceKeyOrd, ServiceKey, Service>,
    pub addresses: Table<(u8, Address), Address, AddressEntry>,
    pub pods: Table<PodId, PodId, Pod>,
    pub cgroups: Table<CgroupId, CgroupId, PodId>,
    pub interfaces: Table<u32, u32, PodId>,
    /// The agent only makes and deletes its entries; the programs write the values.
    pub pod_use: Table<PodId, PodId, PodUse>,
    /// Whether what is in the maps comes from this agent's compiler, which then knows its ids.
    own: bool,
}

impl KernelTables {
    /// The names of the maps.
    pub(super) const NAMES: [&str; 9] = [
        "PORTS",
        "BACKENDS",
        "POLICY",
        "SERVICES",
        "ADDRESSES",
        "PODS",
        "CGROUPS",
        "INTERFACES",
        "POD_USE",
    ];

    /// Takes the maps by their names.
    pub(super) fn new(
        mut map: impl FnMut(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            ports: Table::new(
                "PORTS",
                map("PORTS")?,
                |(prefix, key)| (u32::from(*prefix), *key),
                |prefix, key| (prefix as u8, key),
            )?,
            backends: Table::new(
                "BACKENDS",
                map("BACKENDS")?,
                |key| (0, backend_key(*key)),
                |_, key| (key.backends, key.slot),
            )?,
            policy: Table::new(
                "POLICY",
                map("POLICY")?,
                |key| (0, policy_key(*key)),
                |_, key| (key.subject, key.peer),
            )?,
            services: Table::new(
                "SERVICES",
                map("SERVICES")?,
                |key| (0, service_key(*key)),
                |_, key| (key.address, key.port, key.protocol),
            )?,
            addresses: Table::new(
                "ADDRESSES",
                map("ADDRESSES")?,
                |(prefix, address)| (u32::from(*prefix), *address),
                |prefix, address| (prefix as u8, address),
            )?,
            pods: Table::new("PODS", map("PODS")?, |id| (0, *id), |_, id| id)?,
            cgroups: Table::new("CGROUPS", map("CGROUPS")?, |id| (0, *id), |_, id| id)?,
            interfaces: Table::new("INTERFACES", map("INTERFACES")?, |id| (0, *id), |_, id| id)?,
            pod_use: Table::new("POD_USE", map("POD_USE")?, |id| (0, *id), |_, id| id)?,
            own: false,
        })
    }

    /// The highest id of any kind that the maps know.
    pub(super) fn highest_id(&self) -> u32 {
        let mut highest = 0;
        let mut seen = |id: u32| {
            // Not an id, but a mark.
            if id != u32::MAX {
                highest = highest.max(id);
            }
        };
        for ((_, key), decision) in self.ports.installed() {
            seen(key.table);
            seen(decision.rule);
        }
        for (backends, _) in self.backends.installed().keys() {
            seen(*backends);
        }
        for ((subject, peer), entry) in self.policy.installed() {
            seen(*subject);
            seen(peer >> 1);
            seen(entry.ports);
            seen(entry.decision.rule);
        }
        for service in self.services.installed().values() {
            seen(service.backends);
        }
        for entry in self.addresses.installed().values() {
            seen(entry.class);
            seen(entry.pod);
            seen(entry.plain);
        }
        for (id, pod) in self.pods.installed() {
            seen(*id);
            seen(pod.ingress_subject);
            seen(pod.egress_subject);
        }
        for id in self.cgroups.installed().values().chain(self.interfaces.installed().values()) {
            seen(*id);
        }
        highest
    }

    /// Entries and capacity, by map name.
    pub(super) fn use_of_maps(&self) -> BTreeMap<&'static str, (u32, u32)> {
        fn of<O: Ord + Copy, K: aya::Pod, V: aya::Pod + PartialEq>(
            table: &Table<O, K, V>,
        ) -> (&'static str, (u32, u32)) {
            (table.name(), (table.installed().len() as u32, table.capacity()))
        }
        BTreeMap::from([
            of(&self.ports),
            of(&self.backends),
            of(&self.policy),
            of(&self.services),
            of(&self.addresses),
            of(&self.pods),
            of(&self.cgroups),
            of(&self.interfaces),
            of(&self.pod_use),
        ])
    }

    /// Writes what `old` has and these have not.
    pub(super) fn copy_from(&mut self, old: &Self) -> Result<(), ApplyError> {
        self.ports.insert_changes(old.ports.installed())?;
        self.backends.insert_changes(old.backends.installed())?;
        self.policy.insert_changes(old.policy.installed())?;
        self.services.insert_changes(old.services.installed())?;
        self.addresses.insert_changes(old.addresses.installed())?;
        self.pod_use.insert_changes(old.pod_use.installed())?;
        self.pods.insert_changes(old.pods.installed())?;
        self.cgroups.insert_changes(old.cgroups.installed())?;
        self.interfaces.insert_changes(old.interfaces.installed())?;
        self.each(|table| table.commit());
        Ok(())
    }

    /// Brings `tables` into the maps. On an error everything is as it was.
    pub(super) fn apply(&mut self, tables: &Tables) -> Result<Applied, ApplyError> {
        let pods: BTreeMap<PodId, Pod> =
            tables.pods.values().map(|pod| (pod.id, pod.entry)).collect();
        let policy = self.policy_on_the_way(tables);
        self.check_room(tables, &policy, &pods)?;
        match self.change(tables, &policy, &pods) {
            Ok(applied) => {
                self.each(|table| table.commit());
                self.own = true;
                Ok(applied)
            }
            Err(error) => {
                self.each(|table| table.roll_back());
                Err(error)
            }
        }
    }

    /// `POLICY` while the change is made. The first tables after a restart need entries between
    /// them and the earlier agent's.
    fn policy_on_the_way<'a>(&self, tables: &'a Tables) -> Cow<'a, Policy> {
        if self.own {
            return Cow::Borrowed(&tables.policy);
        }
        let in_force =
            InForce { addresses: self.addresses.installed(), policy: self.policy.installed() };
        let mut policy = tables.policy.clone();
        policy.extend(bridge(in_force, tables));
        Cow::Owned(policy)
    }

    fn check_room(
        &self,
        tables: &Tables,
        policy: &Policy,
        pods: &BTreeMap<PodId, Pod>,
    ) -> Result<(), ApplyError> {
        self.ports.check_room(&tables.ports)?;
        self.backends.check_room(&tables.backends)?;
        self.policy.check_room(policy)?;
        self.services.check_room(&tables.services)?;
        self.addresses.check_room(&tables.addresses)?;
        self.pods.check_room(pods)?;
        self.pod_use.check_room(&pods.keys().map(|id| (*id, PodUse::default())).collect())
    }

    fn change(
        &mut self,
        tables: &Tables,
        policy: &Policy,
        pods: &BTreeMap<PodId, Pod>,
    ) -> Result<Applied, ApplyError> {
        let mut applied = Applied::default();
        // First what nothing refers to yet, then what refers to it.
        applied.written += self.ports.insert_changes(&tables.ports)?;
        applied.written += self.backends.insert_changes(&tables.backends)?;
        applied.written += self.policy.insert_changes(policy)?;
        applied.written += self.services.insert_changes(&tables.services)?;
        applied.written += self.addresses.insert_changes(&tables.addresses)?;
        for id in pods.keys() {
            self.pod_use.insert_new(id, &PodUse::default())?;
        }
        applied.written += self.pods.insert_changes(pods)?;
        // Then what nothing refers to any more, in the opposite order.
        let stale: Vec<CgroupId> = self
            .cgroups
            .installed()
            .iter()
            .filter(|(_, pod)| **pod != weft_common::POD_OF_THE_MESH && !pods.contains_key(pod))
            .map(|(cgroup, _)| *cgroup)
            .collect();
        for cgroup in &stale {
            self.cgroups.remove(cgroup)?;
        }
        applied.deleted += stale.len();
        applied.deleted += self.pods.delete_unwanted(pods)?;
        let unused: Vec<PodId> =
            self.pod_use.installed().keys().filter(|id| !pods.contains_key(id)).copied().collect();
        for id in &unused {
            self.pod_use.remove(id)?;
        }
        applied.deleted += self.addresses.delete_unwanted(&tables.addresses)?;
        applied.deleted += self.services.delete_unwanted(&tables.services)?;
        applied.deleted += self.policy.delete_unwanted(&tables.policy)?;
        applied.deleted += self.backends.delete_unwanted(&tables.backends)?;
        applied.deleted += self.ports.delete_unwanted(&tables.ports)?;
        Ok(applied)
    }

    /// Does the same to every table, those first that refer to others.
    fn each(&mut self, mut what: impl FnMut(&mut dyn Journal)) {
        what(&mut self.interfaces);
        what(&mut self.cgroups);
        what(&mut self.pods);
        what(&mut self.pod_use);
        what(&mut self.addresses);
        what(&mut self.services);
        what(&mut self.policy);
        what(&mut self.backends);
        what(&mut self.ports);
    }
}

/// A table whose last change can be kept or undone.
trait Journal {
    fn commit(&mut self);
    fn roll_back(&mut self);
}

impl<O: Ord + Copy, K: aya::Pod, V: aya::Pod + PartialEq> Journal for Table<O, K, V> {
    fn commit(&mut self) {
        Table::commit(self);
    }

    fn roll_back(&mut self) {
        Table::roll_back(self);
    }
}
