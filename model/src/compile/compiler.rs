use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use weft_common::{
    ADDRESS_HOST, ADDRESS_LOCAL, ADDRESS_MESHED, ADDRESS_REMOTE_NODE, Address, AddressEntry,
    POD_ACCELERATE, POD_ENROLLED, POD_HOST_NETWORK, Pod as PodEntry, PodId, PortKey,
};

use super::blocks::Block;
use super::classes::Classes;
use super::decide::plain;
use super::facts::Facts;
use super::ids::{Epoch, Ids, Interned};
use super::library::Library;
use super::local::Policies;
use super::peers::{Owners, Reader};
use super::port_table::PortTable;
use super::services::{self, Backends};
use super::subject::{Numbers, Subject, SubjectKey};
use super::vocabulary::Vocabulary;
use super::{LocalPod, Tables};
use crate::mesh::{Mesh, Name, Origin, Pod};

/// Compiles one mesh after the other for one node.
///
/// Numbers in the tables are never given a second meaning, so the entries of `POLICY`, `PORTS`
/// and `BACKENDS` never change: they come and go. While the kernel goes from the tables of one
/// compilation to those of the next, entry by entry, subjects of one meet classes of the other;
/// so the tables of a compilation also have the `POLICY` entries of the subjects and classes
/// of the one before, each judged by its own policies and its own facts.
///
/// Hence the tables of every compilation are to be applied in turn; where that fails, say so by
/// [`Self::not_applied`].
#[derive(Debug)]
pub struct Compiler {
    node: Arc<str>,
    ids: Ids,
    epoch: Epoch,
    /// The compilation whose tables are in force.
    in_force: Epoch,
    failed: bool,
    /// What is read of peers. It includes `needed`.
    vocabulary: Vocabulary,
    /// What the policies in force since `in_force` need.
    needed: Vocabulary,
    library: Library,
    classes: Classes,
    subject_ids: Interned<SubjectKey>,
    subjects: BTreeMap<u32, Subject>,
    origins: Interned<Origin>,
    port_tables: Interned<PortTable>,
    backends: Interned<Backends>,
    pods: Interned<(Name, Arc<str>)>,
    rules: Arc<BTreeMap<u32, Origin>>,
}

impl Compiler {
    /// A compiler that gives no number below `first_id`: after a restart, what
    /// [`Self::next_id`] said before it, or more than the highest number in the kernel's maps.
    pub fn starting_at(first_id: u32) -> Self {
        Self {
            node: "".into(),
            ids: Ids::starting_at(first_id),
            epoch: 0,
            in_force: 0,
            failed: false,
            vocabulary: Vocabulary::default(),
            needed: Vocabulary::default(),
            library: Library::default(),
            classes: Classes::default(),
            subject_ids: Interned::default(),
            subjects: BTreeMap::new(),
            origins: Interned::default(),
            port_tables: Interned::default(),
            backends: Interned::default(),
            pods: Interned::default(),
            rules: Arc::default(),
        }
    }

    /// Takes over the id that a pod has had since before this compiler: its connections and its
    /// cgroup in the kernel name it. To be called before the first compilation, with an id below
    /// the first.
    pub fn adopt_pod(&mut self, name: Name, uid: Arc<str>, id: PodId) {
        self.pods.adopt((name, uid), id, self.epoch);
    }

    /// The next number that will be given. Classes have 31 bits in the kernel, so a compiler
    /// should not be used once this passes 2^31.
    pub fn next_id(&self) -> u32 {
        self.ids.next()
    }

    /// Tells that the tables of the last compilation did not reach the kernel, or not whole:
    /// what the ones before need is kept for another turn.
    pub fn not_applied(&mut self) {
        self.failed = true;
    }

    /// The tables of `node`.
    pub fn compile(&mut self, mesh: &Mesh, node: &str) -> Tables {
        if self.node.is_empty() {
            self.node = node.into();
        } else if *self.node != *node {
            *self = Self { node: node.into(), ..Self::starting_at(self.ids.next()) };
        }
        self.begin();
        let mut tables = Tables::default();
        let policies = Policies::of(mesh, &mut self.library);
        let (mut keys, local) = self.local_pods(&policies);
        self.read(&keys, &policies);
        self.addresses(mesh, &policies, &mut tables);
        self.library.refresh(
            &self.classes,
            &mut self.origins,
            &mut self.ids,
            self.epoch,
            self.in_force,
        );
        let subjects: Vec<u32> = keys.drain(..).map(|key| self.subject(key)).collect();
        self.policy(&mut tables);
        let subject = |index: Option<usize>| {
            index.and_then(|index| subjects.get(index)).copied().unwrap_or(0)
        };
        for (pod, [ingress, egress]) in local {
            let local = self.local_pod(mesh, pod, subject(ingress), subject(egress));
            tables.pods.insert(pod.name.clone(), local);
        }
        services::compile(mesh, node, &mut self.backends, &mut self.ids, self.epoch, &mut tables);
        self.ports(&mut tables);
        tables.rules = self.rules();
        tables
    }

    /// Forgets what neither the tables in force nor these can need.
    fn begin(&mut self) {
        if !self.failed {
            self.in_force = self.epoch;
        }
        self.epoch += 1;
        let oldest = self.in_force;
        let gone = self.classes.begin(oldest);
        for subject in self.subject_ids.forget_before(oldest) {
            self.subjects.remove(&subject);
        }
        for subject in self.subjects.values_mut() {
            subject.forget_classes(&gone);
        }
        self.origins.forget_before(oldest);
        self.port_tables.forget_before(oldest);
        self.backends.forget_before(oldest);
        self.pods.forget_before(oldest);
    }

    /// The node's pods with their subjects, as places in the list of subjects.
    #[expect(clippy::type_complexity, reason = "used in one place")]
    fn local_pods<'a>(
        &self,
        policies: &Policies<'a>,
    ) -> (Vec<SubjectKey>, Vec<(&'a Pod, [Option<usize>; 2])>) {
        let mut keys = Vec::new();
        let mut places: HashMap<SubjectKey, usize> = HashMap::new();
        let on_node =
            policies.mesh.pods.values().filter(|pod| *pod.node == *self.node && !pod.finished);
        let local = on_node
            .map(|pod| {
                let places = policies.subjects(pod).map(|key| {
                    let key = key?;
                    Some(*places.entry(key).or_insert_with_key(|key| {
                        keys.push(key.clone());
                        keys.len() - 1
                    }))
                });
                (&**pod, places)
            })
            .collect();
        (keys, local)
    }

    /// Settles what is read of peers. It either grows or shrinks, never both: where it grows,
    /// all that was read before is read on, so that the classes that are given up know nothing
    /// less than policies before ask for; where it shrinks, they know all that policies now
    /// ask for.
    fn read(&mut self, keys: &[SubjectKey], policies: &Policies<'_>) {
        let mut needs = Vocabulary::default();
        for key in keys {
            policies.note(key, &mut self.library, &mut needs, self.epoch);
        }
        let shrinks = self.vocabulary.includes(&needs);
        if shrinks && !self.failed {
            self.vocabulary = self.needed.clone();
        }
        self.vocabulary.extend(&needs);
        if self.failed {
            self.needed.extend(&needs);
        } else {
            self.needed = needs;
        }
        self.failed = false;
    }

    fn addresses(&mut self, mesh: &Mesh, policies: &Policies<'_>, tables: &mut Tables) {
        let owners = Owners::of(mesh);
        let Self { node, vocabulary, classes, ids, epoch, pods, origins, port_tables, .. } = self;
        let epoch = *epoch;
        let mut reader = Reader::of(mesh, node, vocabulary);
        let mut class = |facts: Facts, ids: &mut Ids| classes.class(facts, ids, epoch);
        // A pod's or node's own entry takes the place of one of the world for its address alone,
        // and a class that no address is of would have entries for nothing.
        let of_world = |block: &Block| block.single().is_none_or(|address| !owners.own(&address));
        for block in reader.boundaries().filter(of_world).collect::<Vec<_>>() {
            let entry = AddressEntry {
                class: class(reader.boundary(&block), ids),
                ..AddressEntry::default()
            };
            tables.addresses.insert((block.length, block.address()), entry);
        }
        let mut exact = BTreeMap::new();
        for address in reader.endpoints().filter(|address| !owners.own(address)) {
            let entry =
                AddressEntry { class: class(reader.world(address), ids), ..Default::default() };
            exact.insert((128, Address::from(address)), entry);
        }
        for (address, owner) in &owners.nodes {
            let own = ***owner == **node;
            let entry = AddressEntry {
                class: class(reader.node(owner, *address), ids),
                flags: if own { ADDRESS_HOST } else { ADDRESS_REMOTE_NODE },
                ..Default::default()
            };
            exact.insert((128, Address::from(*address)), entry);
        }
        let mut plain_tables = HashMap::new();
        for (address, pod) in &owners.pods {
            let mut entry =
                AddressEntry { class: class(reader.pod(pod, *address), ids), ..Default::default() };
            if pod.node == *node {
                entry.flags |= ADDRESS_LOCAL;
                entry.pod = pods.intern((pod.name.clone(), pod.uid.clone()), ids, epoch).0;
            }
            if mesh.is_enrolled(pod) {
                entry.flags |= ADDRESS_MESHED;
                let modes = policies.mtls.modes(pod);
                let mut numbers = Numbers { origins, tables: port_tables, ids, epoch };
                entry.plain = *plain_tables
                    .entry(modes)
                    .or_insert_with_key(|modes| plain(modes, &mut numbers));
            }
            exact.insert((128, Address::from(*address)), entry);
        }
        tables.addresses.extend(exact);
    }

    /// The id of a subject.
    fn subject(&mut self, key: SubjectKey) -> u32 {
        let (id, _) = self.subject_ids.intern(key, &mut self.ids, self.epoch);
        if let Some(key) = self.subject_ids.content(id, self.epoch) {
            self.subjects.entry(id).or_insert_with(|| Subject::of(key.clone()));
        }
        id
    }

    fn policy(&mut self, tables: &mut Tables) {
        let (all, new) = (self.classes.all(), self.classes.added());
        let mut numbers = Numbers {
            origins: &mut self.origins,
            tables: &mut self.port_tables,
            ids: &mut self.ids,
            epoch: self.epoch,
        };
        let mut entries = Vec::new();
        for (id, subject) in &mut self.subjects {
            subject.refresh(&self.library, &self.classes, (&all, &new), &mut numbers);
            entries.extend(subject.entries().map(|(peer, entry)| ((*id, peer), entry)));
        }
        tables.policy = entries.into_iter().collect();
    }

    fn local_pod(&mut self, mesh: &Mesh, pod: &Pod, ingress: u32, egress: u32) -> LocalPod {
        let name = (pod.name.clone(), pod.uid.clone());
        let (id, _): (PodId, bool) = self.pods.intern(name, &mut self.ids, self.epoch);
        let mut flags = 0;
        for (is, flag) in [
            (mesh.is_enrolled(pod), POD_ENROLLED),
            (pod.accelerate, POD_ACCELERATE),
            (pod.host_network, POD_HOST_NETWORK),
        ] {
            flags |= if is { flag } else { 0 };
        }
        let v4 = pod.address_like(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let v6 = pod.address_like(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        LocalPod {
            id,
            uid: pod.uid.clone(),
            entry: PodEntry {
                ingress_subject: ingress,
                egress_subject: egress,
                flags,
                v4: v4.map_or(0, |v4| Address::from(v4).v4()),
                v6: v6.map_or(Address::UNSPECIFIED, Address::from),
            },
        }
    }

    /// The port tables that the others refer to.
    fn ports(&mut self, tables: &mut Tables) {
        let of_policy = tables.policy.values().map(|entry| entry.ports);
        let of_addresses = tables.addresses.values().map(|entry| entry.plain);
        let mut wanted: Vec<u32> = of_policy.chain(of_addresses).collect();
        wanted.sort_unstable();
        wanted.dedup();
        for id in wanted {
            let Some(table) = self.port_tables.content(id, self.epoch) else { continue };
            let PortTable::Prefixes(prefixes) = &**table else { continue };
            for prefix in prefixes {
                let key = PortKey::new(id, prefix.protocol, prefix.port);
                tables.ports.insert((prefix.bits, key), prefix.decision);
            }
        }
    }

    fn rules(&mut self) -> Arc<BTreeMap<u32, Origin>> {
        // Origins of PeerAuthentications are not in the library.
        let modes: Vec<Origin> = self
            .subjects
            .values()
            .filter_map(|subject| subject.key().mtls.as_ref())
            .flat_map(|modes| std::iter::once(&modes.default).chain(modes.ports.values()))
            .filter_map(|(_, origin)| origin.clone())
            .collect();
        for origin in modes {
            self.origins.intern(origin, &mut self.ids, self.epoch);
        }
        let mut same = 0;
        let all = self.origins.iter().all(|(id, _)| {
            same += 1;
            self.rules.contains_key(&id)
        });
        if !all || same != self.rules.len() {
            let rules = self.origins.iter().map(|(id, origin)| (id, Origin::clone(origin)));
            self.rules = Arc::new(rules.collect());
        }
        self.rules.clone()
    }
}
