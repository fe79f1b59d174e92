//! Going over from the tables of an earlier agent to those of this one.
//!
//! A compiler gives numbers of its own to subjects and classes, and while the kernel goes from
//! one agent's tables to the next one's, entry by entry, subjects of one meet classes of the
//! other. A pair without an entry would be judged as "every other class", which is neither the
//! old nor the new decision. So the first tables also say what the earlier agent's subjects are
//! to think of this one's classes (as before), and the other way round (as from now on).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_common::{ANY_CLASS, Address, AddressEntry, PolicyEntry, PolicyKey};
use weft_model::compile::{PolicyKeyOrd, Tables};

use crate::kernel::Installed;

/// `tables` with what is needed while they take the place of `installed`; none where nothing is.
pub(super) fn bridge(installed: &Installed<'_>, tables: &Tables) -> Option<Tables> {
    let before = Addresses::new(installed.addresses);
    let after = Addresses::new(&tables.addresses);
    let mut added: BTreeMap<PolicyKeyOrd, PolicyEntry> = BTreeMap::new();

    // Addresses are written before pods: the subjects before meet the classes after.
    let subjects = subjects(installed.pods.values());
    let mut pairs: BTreeSet<(u32, u32)> = BTreeSet::new();
    for ((length, address), entry) in &tables.addresses {
        let class = before.class(*length, *address);
        if entry.class != class && pairs.insert((entry.class, class)) {
            meet(&subjects, entry.class, class, installed.policy, &tables.policy, &mut added);
        }
    }
    // Addresses are deleted after pods are written: the subjects after meet the classes before.
    let subjects = self::subjects(tables.pods.values().map(|pod| &pod.entry));
    let mut pairs: BTreeSet<(u32, u32)> = BTreeSet::new();
    for ((length, address), entry) in installed.addresses {
        let class = after.class(*length, *address);
        if entry.class != class && pairs.insert((entry.class, class)) {
            meet(&subjects, entry.class, class, &tables.policy, &tables.policy, &mut added);
        }
    }
    if added.is_empty() {
        return None;
    }

    let mut bridged = tables.clone();
    let ports: BTreeSet<u32> = added.values().map(|entry| entry.ports).collect();
    bridged.policy.extend(added);
    let kept = installed.ports.iter().filter(|((_, key), _)| ports.contains(&key.table));
    bridged.ports.extend(kept.map(|(key, decision)| (*key, *decision)));
    Some(bridged)
}

/// Lets subjects treat `class` as `policy` lets them treat the class `like`. What is known of
/// them already goes first.
fn meet(
    subjects: &BTreeSet<u32>,
    class: u32,
    like: u32,
    policy: &BTreeMap<PolicyKeyOrd, PolicyEntry>,
    known: &BTreeMap<PolicyKeyOrd, PolicyEntry>,
    added: &mut BTreeMap<PolicyKeyOrd, PolicyEntry>,
) {
    for subject in subjects {
        for proven in [false, true] {
            let entry = |class: u32| policy.get(&key(*subject, class, proven));
            let any = entry(ANY_CLASS);
            let Some(wanted) = entry(like).or(any) else { continue };
            let key = key(*subject, class, proven);
            if Some(wanted) != any && !known.contains_key(&key) {
                added.entry(key).or_insert(*wanted);
            }
        }
    }
}

fn key(subject: u32, class: u32, proven: bool) -> PolicyKeyOrd {
    let key = PolicyKey::new(subject, class, proven);
    (key.subject, key.peer)
}

fn subjects<'a>(pods: impl Iterator<Item = &'a weft_common::Pod>) -> BTreeSet<u32> {
    // 0 is unrestricted, whomever it meets.
    pods.flat_map(|pod| [pod.ingress_subject, pod.egress_subject])
        .filter(|subject| *subject != 0)
        .collect()
}

/// Looks up addresses by the longest prefix, as the kernel does.
struct Addresses {
    /// By length, the longest last.
    prefixes: BTreeMap<u8, HashMap<u128, u32>>,
}

impl Addresses {
    fn new(entries: &BTreeMap<(u8, Address), AddressEntry>) -> Self {
        let mut prefixes: BTreeMap<u8, HashMap<u128, u32>> = BTreeMap::new();
        for ((length, address), entry) in entries {
            prefixes.entry(*length).or_default().insert(masked(*address, *length), entry.class);
        }
        Self { prefixes }
    }

    /// The class of a prefix: that of the longest which holds all of it.
    fn class(&self, length: u8, address: Address) -> u32 {
        self.prefixes
            .range(..=length)
            .rev()
            .find_map(|(length, classes)| classes.get(&masked(address, *length)))
            .copied()
            .unwrap_or(ANY_CLASS)
    }
}

fn masked(address: Address, length: u8) -> u128 {
    let bits = address.0.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
    bits & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)
}
