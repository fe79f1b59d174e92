//! Subjects: one direction of the pods on which the same policies act in the same way.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_common::{Decision, PolicyEntry};

use super::bits::Bits;
use super::classes::{Classes, Slots};
use super::decide::{Matched, Situation};
use super::facts::{Facts, Kind};
use super::ids::{Epoch, Ids, Interned};
use super::library::{Library, Version};
use super::mtls::Modes;
use super::port_table::PortTable;
use crate::mesh::{Direction, NamedPort, Origin};

/// All that decides about a subject's traffic, but for its peers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SubjectKey {
    pub(super) direction: Direction,
    /// Those that speak of the direction, in order.
    pub(super) policies: Vec<Version>,
    /// In order; of ingress.
    pub(super) authorizations: Vec<Version>,
    /// Of ingress.
    pub(super) mtls: Option<Modes>,
    /// The pod's own, if a rule for ingress names ports.
    pub(super) named_ports: Vec<NamedPort>,
    /// The pod's own, if a rule reads them.
    pub(super) addresses: Vec<IpAddr>,
    /// Whether a rule reads named ports of peers.
    pub(super) peers_named_ports: bool,
}

/// A subject with its entries of `POLICY`.
#[derive(Debug)]
pub(super) struct Subject {
    key: Arc<SubjectKey>,
    /// For every class that has no entry: of an unproven and of a proven peer. Never changes.
    any: Option<[PolicyEntry; 2]>,
    /// By class, shifted, and whether it is proven, as in [`weft_common::PolicyKey`].
    entries: HashMap<u32, PolicyEntry>,
}

/// What the compiler numbers on the way.
pub(super) struct Numbers<'a> {
    pub(super) origins: &'a mut Interned<Origin>,
    pub(super) tables: &'a mut Interned<PortTable>,
    pub(super) ids: &'a mut Ids,
    pub(super) epoch: Epoch,
}

/// What of a class is read beside the rules that match it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Base {
    pub(super) own_node: bool,
    pub(super) v4: Option<bool>,
    pub(super) named_ports: Vec<NamedPort>,
}

/// A rule that may match a class.
#[derive(Clone, Copy, Debug)]
pub(super) enum Marker {
    /// Policy and rule, by their places in the subject.
    Rule(usize, usize),
    /// AuthorizationPolicy and rule, and whether the source that matches needs HTTP.
    Source(usize, usize, bool),
}

/// Classes that the same rules match are alike to the subject: a path in a tree, whose root is
/// the [`Base`] and whose edges are markers, in order.
#[derive(Debug, Default)]
struct Signatures {
    roots: HashMap<Base, usize>,
    edges: HashMap<(usize, usize), usize>,
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Root(Base),
    /// Parent and marker.
    Edge(usize, usize),
}

impl Subject {
    pub(super) fn of(key: Arc<SubjectKey>) -> Self {
        Self { key, any: None, entries: HashMap::new() }
    }

    /// Its entries: of all classes, then of those that differ.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, PolicyEntry)> {
        let any = self.any.into_iter().flat_map(|[unproven, proven]| {
            let proven = (self.key.direction == Direction::Ingress).then_some((1, proven));
            std::iter::once((0, unproven)).chain(proven)
        });
        any.chain(self.entries.iter().map(|(peer, entry)| (*peer, *entry)))
    }

    pub(super) fn forget_classes(&mut self, gone: &[u32]) {
        for class in gone {
            self.entries.remove(&(class << 1));
            self.entries.remove(&(class << 1 | 1));
        }
    }

    pub(super) fn key(&self) -> &SubjectKey {
        &self.key
    }

    /// Adds entries for the classes that are new, or for all if the subject is.
    pub(super) fn refresh(
        &mut self,
        library: &Library,
        classes: &Classes,
        (all, new): (&Slots, &Slots),
        numbers: &mut Numbers<'_>,
    ) {
        let slots = if self.any.is_none() { all } else { new };
        if slots.list.is_empty() && self.any.is_some() {
            return;
        }
        let situation = Situation::of(&self.key, library, numbers);
        let egress = self.key.direction == Direction::Egress;
        let mut any = self.any.unwrap_or([NOTHING; 2]);
        for proven in if egress { &[false][..] } else { &[false, true] } {
            let (signatures, by_slot) = self.signatures(library, classes, slots, *proven);
            let entries: Vec<Option<PolicyEntry>> = {
                let mut used = vec![false; signatures.nodes.len()];
                for slot in &slots.list {
                    let at = by_slot.get(*slot).copied().flatten();
                    if let Some(used) = at.and_then(|at| used.get_mut(at)) {
                        *used = true;
                    }
                }
                let markers = markers(&self.key, library);
                used.iter()
                    .enumerate()
                    .map(|(at, used)| {
                        used.then(|| {
                            let matched = signatures.matched(at, &markers);
                            numbers.entry(situation.table(&matched, *proven))
                        })
                    })
                    .collect()
            };
            let entry_of = |slot: usize| entries.get((*by_slot.get(slot)?)?).copied().flatten();
            if self.any.is_none() {
                any[usize::from(*proven)] =
                    most_common(slots.list.iter().filter_map(|s| entry_of(*s)));
            }
            for slot in &slots.list {
                let (Some(class), Some(entry)) = (classes.at(*slot), entry_of(*slot)) else {
                    continue;
                };
                if entry != any[usize::from(*proven)] {
                    self.entries.insert(class.id << 1 | u32::from(*proven), entry);
                }
            }
        }
        self.any = Some(any);
    }

    /// The signatures of the classes that the subject judges, and by slot which it is.
    fn signatures(
        &self,
        library: &Library,
        classes: &Classes,
        slots: &Slots,
        proven: bool,
    ) -> (Signatures, Vec<Option<usize>>) {
        let mut signatures = Signatures::default();
        let mut by_slot = vec![None; classes.slots()];
        for slot in &slots.list {
            if let (Some(class), Some(at)) = (classes.at(*slot), by_slot.get_mut(*slot))
                && self.judges(&class.facts)
            {
                *at = Some(signatures.root(self.base(&class.facts)));
            }
        }
        for (index, marker) in markers(&self.key, library).iter().enumerate() {
            let Some(bits) = self.bits(library, *marker, proven) else { continue };
            for slot in bits.and(&slots.bits) {
                if let Some(Some(at)) = by_slot.get_mut(slot) {
                    *at = signatures.edge(*at, index);
                }
            }
        }
        (signatures, by_slot)
    }

    /// Processes of the pods' own node may always reach them: `weft_common::judge_source` says
    /// so before it looks for an entry.
    fn judges(&self, facts: &Facts) -> bool {
        self.key.direction == Direction::Egress || facts.kind != Kind::OwnNode
    }

    fn base(&self, facts: &Facts) -> Base {
        Base {
            own_node: facts.kind == Kind::OwnNode,
            v4: if self.key.addresses.is_empty() { None } else { facts.v4 },
            named_ports: match (&facts.pod, self.key.peers_named_ports) {
                (Some(pod), true) => pod.named_ports.clone(),
                _ => Vec::new(),
            },
        }
    }

    fn bits<'a>(&self, library: &'a Library, marker: Marker, proven: bool) -> Option<&'a Bits> {
        match marker {
            Marker::Rule(policy, rule) => {
                let acting = library.policy(*self.key.policies.get(policy)?)?;
                acting.rules.get(rule).map(|rule| rule.peers(proven))
            }
            Marker::Source(policy, rule, http) => {
                let acting = library.authorization(*self.key.authorizations.get(policy)?)?;
                let sources = acting.rules.get(rule)?.sources.get(usize::from(proven))?;
                Some(if http { &sources.http } else { &sources.l4 })
            }
        }
    }
}

/// What no class resolves to: there always is a class for all other addresses.
const NOTHING: PolicyEntry =
    PolicyEntry { ports: 0, decision: Decision::because(weft_common::Reason::MissingTable) };

/// The rules of the subject's direction.
fn markers(key: &SubjectKey, library: &Library) -> Vec<Marker> {
    let mut markers = Vec::new();
    for (at, version) in key.policies.iter().enumerate() {
        let rules = library.policy(*version).map(|acting| &acting.policy.rules);
        let own = rules.into_iter().flatten().enumerate();
        markers.extend(
            own.filter(|(_, rule)| rule.direction == key.direction)
                .map(|(rule, _)| Marker::Rule(at, rule)),
        );
    }
    for (at, version) in key.authorizations.iter().enumerate() {
        let rules = library.authorization(*version).map_or(0, |acting| acting.rules.len());
        for rule in 0..rules {
            markers.push(Marker::Source(at, rule, false));
            markers.push(Marker::Source(at, rule, true));
        }
    }
    markers
}

/// The first of those that come most often.
fn most_common(entries: impl Iterator<Item = PolicyEntry>) -> PolicyEntry {
    let mut counts: HashMap<PolicyEntry, (usize, usize)> = HashMap::new();
    for (index, entry) in entries.enumerate() {
        counts.entry(entry).or_insert((0, index)).0 += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(_, (count, first))| (*count, usize::MAX - *first))
        .map_or(NOTHING, |(entry, _)| entry)
}

impl Signatures {
    fn root(&mut self, base: Base) -> usize {
        if let Some(at) = self.roots.get(&base) {
            return *at;
        }
        self.nodes.push(Node::Root(base.clone()));
        let at = self.nodes.len() - 1;
        self.roots.insert(base, at);
        at
    }

    fn edge(&mut self, from: usize, marker: usize) -> usize {
        *self.edges.entry((from, marker)).or_insert_with(|| {
            self.nodes.push(Node::Edge(from, marker));
            self.nodes.len() - 1
        })
    }

    fn matched(&self, mut at: usize, markers: &[Marker]) -> Matched<'_> {
        let mut matched = Vec::new();
        loop {
            match self.nodes.get(at) {
                Some(Node::Edge(parent, marker)) => {
                    matched.extend(markers.get(*marker).copied());
                    at = *parent;
                }
                Some(Node::Root(base)) => {
                    matched.reverse();
                    return Matched { base: Some(base), markers: matched };
                }
                None => return Matched { base: None, markers: matched },
            }
        }
    }
}

impl Numbers<'_> {
    /// The entry that leads to a port table.
    fn entry(&mut self, table: PortTable) -> PolicyEntry {
        match table {
            PortTable::Uniform(decision) => PolicyEntry { ports: 0, decision },
            table => {
                PolicyEntry { ports: self.table(table), decision: Decision { rule: 0, reason: 0 } }
            }
        }
    }

    /// The id of a port table.
    pub(super) fn table(&mut self, table: PortTable) -> u32 {
        self.tables.intern(table, self.ids, self.epoch).0
    }

    /// The id of an origin; 0 for none.
    pub(super) fn origin(&mut self, origin: Option<&Origin>) -> u32 {
        origin.map_or(0, |origin| self.origins.intern(origin.clone(), self.ids, self.epoch).0)
    }
}
