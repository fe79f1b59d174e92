//! Classes of peers, each with a slot: slots are small numbers that are used again, for sets of
//! classes; ids are what the kernel sees.

use std::collections::HashMap;
use std::sync::Arc;

use super::bits::Bits;
use super::facts::{Belief, Facts};
use super::ids::{Epoch, Ids, Interned};
use crate::mesh::{Dialect, Labels, Peer, Rule};

#[derive(Debug, Default)]
pub(super) struct Classes {
    interned: Interned<Facts>,
    slots: Vec<Option<Class>>,
    slot_of: HashMap<u32, usize>,
    free: Vec<usize>,
    /// Slots that were filled since [`Self::begin`].
    filled: Vec<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct Class {
    pub(super) id: u32,
    pub(super) facts: Arc<Facts>,
}

impl Classes {
    /// Forgets what has been out of use since before `oldest`, and says which ids those were.
    pub(super) fn begin(&mut self, oldest: Epoch) -> Vec<u32> {
        self.filled.clear();
        let gone = self.interned.forget_before(oldest);
        for id in &gone {
            if let Some(slot) = self.slot_of.remove(id) {
                if let Some(entry) = self.slots.get_mut(slot) {
                    *entry = None;
                }
                self.free.push(slot);
            }
        }
        gone
    }

    /// The id of the class that these facts make.
    pub(super) fn class(&mut self, facts: Facts, ids: &mut Ids, epoch: Epoch) -> u32 {
        let (id, new) = self.interned.intern(facts, ids, epoch);
        if new && let Some(facts) = self.interned.content(id, epoch).cloned() {
            let class = Class { id, facts };
            let slot = match self.free.pop() {
                Some(slot) => {
                    if let Some(entry) = self.slots.get_mut(slot) {
                        *entry = Some(class);
                    }
                    slot
                }
                None => {
                    self.slots.push(Some(class));
                    self.slots.len() - 1
                }
            };
            self.slot_of.insert(id, slot);
            self.filled.push(slot);
        }
        id
    }

    pub(super) fn at(&self, slot: usize) -> Option<&Class> {
        self.slots.get(slot)?.as_ref()
    }

    /// How many slots there are, filled or not.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn all(&self) -> Slots {
        Slots::of(self, 0..self.slots.len())
    }

    pub(super) fn added(&self) -> Slots {
        Slots::of(self, self.filled.iter().copied())
    }
}

/// Some of the slots, by namespace.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) bits: Bits,
    pub(super) list: Vec<usize>,
    by_namespace: Vec<(Arc<Labels>, Vec<usize>)>,
}

impl Slots {
    fn of(classes: &Classes, slots: impl IntoIterator<Item = usize>) -> Self {
        let list: Vec<usize> =
            slots.into_iter().filter(|slot| classes.at(*slot).is_some()).collect();
        let mut by_namespace: HashMap<Arc<Labels>, Vec<usize>> = HashMap::new();
        for slot in &list {
            if let Some(pod) = classes.at(*slot).and_then(|class| class.facts.pod.as_ref()) {
                by_namespace.entry(pod.namespace_labels.clone()).or_default().push(*slot);
            }
        }
        Self {
            bits: list.iter().copied().collect(),
            list,
            by_namespace: by_namespace.into_iter().collect(),
        }
    }

    /// Sets, in `bits`, the slots whose class is meant by one of the rule's peers.
    pub(super) fn mark(
        &self,
        bits: &mut Bits,
        classes: &Classes,
        rule: &Rule,
        dialect: Dialect,
        belief: Belief,
    ) {
        let peers = rule.peers.as_deref();
        for slot in &self.list {
            bits.set(*slot, peers.is_none());
        }
        for peer in peers.into_iter().flatten() {
            let mut mark = |slots: &[usize]| {
                for slot in slots {
                    if classes.at(*slot).is_some_and(|class| class.facts.is(peer, dialect, belief))
                    {
                        bits.set(*slot, true);
                    }
                }
            };
            if let Peer::Workloads(workloads) = peer {
                for (labels, slots) in &self.by_namespace {
                    if workloads.namespace.matches(labels) {
                        mark(slots);
                    }
                }
            } else {
                mark(&self.list);
            }
        }
    }
}
