//! From the tables of an agent that has gone to those of its successor.

use std::collections::{BTreeMap, BTreeSet};

use weft_common::{Address, AddressEntry, Decision, PolicyEntry, Reason};

use super::lookup::prefix;
use super::{PolicyKeyOrd, Tables};

type Addresses = BTreeMap<(u8, Address), AddressEntry>;
type Policy = BTreeMap<PolicyKeyOrd, PolicyEntry>;

/// The tables that are in the kernel before the first ones of a new compiler.
#[derive(Clone, Copy, Debug)]
pub struct InForce<'a> {
    /// `ADDRESSES`.
    pub addresses: &'a Addresses,
    /// `POLICY`.
    pub policy: &'a Policy,
}

/// Entries of `POLICY` that are needed only while the first tables of a new compiler take the
/// place of an earlier compiler's, whose numbers it does not know: they say what the subjects
/// of one decide about the classes of the other. To be written before `ADDRESSES` and deleted
/// last; the tables between two compilations of one compiler need none.
///
/// An old subject decides about a new class as it did about the addresses of the class, a new
/// subject about an old class as it does about the addresses of that one. Where those addresses
/// are not alike (the policies have changed meanwhile), it denies.
pub fn bridge(before: InForce<'_>, after: &Tables) -> Policy {
    let mut entries = Policy::new();
    let after_entry = InForce { addresses: &after.addresses, policy: &after.policy };
    add(&mut entries, before, after.addresses.iter());
    let stale = before.addresses.iter().filter(|(key, _)| !after.addresses.contains_key(key));
    add(&mut entries, after_entry, stale);
    entries
}

/// What the subjects of `known` decide about these addresses' classes.
fn add<'a>(
    entries: &mut Policy,
    known: InForce<'_>,
    addresses: impl Iterator<Item = (&'a (u8, Address), &'a AddressEntry)>,
) {
    let lengths: BTreeSet<u8> = known.addresses.keys().map(|(length, _)| *length).collect();
    let own: BTreeSet<u32> = known.addresses.values().map(|entry| entry.class).collect();
    let mut alike: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for ((length, address), entry) in addresses.filter(|(_, entry)| !own.contains(&entry.class)) {
        let around = lengths
            .range(..=length)
            .rev()
            .find_map(|length| known.addresses.get(&(*length, prefix(*address, *length))));
        if let Some(around) = around {
            alike.entry(entry.class).or_default().insert(around.class);
        }
    }
    // Class 0 has an entry for every subject.
    let defaults = known.policy.iter().filter(|((_, peer), _)| peer >> 1 == 0);
    for ((subject, proven), default) in defaults {
        let decided = |class: &u32| {
            let own = known.policy.get(&(*subject, class << 1 | proven));
            own.copied().unwrap_or(*default)
        };
        for (class, others) in &alike {
            let mut decisions = others.iter().map(decided);
            let Some(first) = decisions.next() else { continue };
            let entry = if decisions.all(|other| other == first) { first } else { UNSETTLED };
            if entry != *default {
                entries.insert((*subject, class << 1 | proven), entry);
            }
        }
    }
}

const UNSETTLED: PolicyEntry =
    PolicyEntry { ports: 0, decision: Decision::because(Reason::UnknownPod) };
