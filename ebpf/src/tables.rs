//! What the agent has put in the maps, as the programs read it.

use core::mem::transmute;
use core::ptr::read_volatile;

use aya_ebpf::maps::lpm_trie::Key;
use weft_common::{
    Address, AddressEntry, Config, Counter, Decision, NodeTables, Pod, PodId, PolicyEntry,
    PolicyKey, PortKey, Tables,
};

use crate::maps::{ADDRESSES, BLANK, CONFIG, COUNTERS, PODS, POLICY, PORTS};

/// The maps `POLICY` and `PORTS`, `ADDRESSES` and `PODS`.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        unsafe { POLICY.get(key) }.copied()
    }

    #[inline(always)]
    fn ports(&self, key: &PortKey) -> Option<Decision> {
        let prefix = Prefix { bits: PortKey::BITS, data: *key };
        // SAFETY: the same layout; `Key` is only packed, which would cost a store per byte.
        let prefix: &Key<PortKey> = unsafe { transmute(&prefix) };
        PORTS.get(prefix).copied()
    }
}

impl NodeTables for KernelTables {
    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let prefix = Prefix { bits: 128, data: *address };
        // SAFETY: as above.
        let prefix: &Key<Address> = unsafe { transmute(&prefix) };
        ADDRESSES.get(prefix).copied()
    }

    #[inline(always)]
    fn pod(&self, id: PodId) -> Option<&Pod> {
        pod(id)
    }
}

/// An LPM trie's key, aligned.
#[repr(C)]
struct Prefix<T> {
    bits: u32,
    data: T,
}

/// What is known of an address.
#[inline(always)]
pub fn address(address: &Address) -> AddressEntry {
    match KernelTables.address(address) {
        Some(entry) => entry,
        None => AddressEntry { class: 0, flags: 0, pod: 0, plain: 0 },
    }
}

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn pod(id: PodId) -> Option<&'static Pod> {
    unsafe { PODS.get(id) }
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        unsafe { *value += 1 };
    }
}

/// Zero, which the verifier does not know to be zero. What it is added to is, to the verifier, any
/// number: paths that differ only in such numbers are looked at once, not one by one.
#[inline(always)]
pub fn zero() -> u32 {
    match BLANK.get(0) {
        Some(blank) => unsafe { read_volatile(&raw const blank.unused) },
        None => 0,
    }
}
