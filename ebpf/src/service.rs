//! Load balancing: from a service address to one of its backends.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use weft_common::{Affinity, AffinityKey, BackendKey, Endpoint, PodId, Service, ServiceKey};

use crate::maps::{AFFINITY, BACKENDS, SERVICES};

/// Slots that are looked at to find a client's backend again after its set has changed.
const SCANNED: u32 = 64;

/// Where a dialled endpoint leads.
pub enum Choice {
    /// It is not a service address.
    NoService,
    /// A backend, and the set that it is of.
    Backend { backend: Endpoint, backends: u32 },
    /// The service has no backend.
    NoEndpoint,
}

/// Chooses a backend for a client.
#[inline(always)]
pub fn choose(dialled: &Endpoint, protocol: u8, client: PodId) -> Choice {
    let key =
        ServiceKey { address: dialled.address, port: dialled.port as u16, protocol, unused: 0 };
    let Some(service) = (unsafe { SERVICES.get(key) }).copied() else { return Choice::NoService };
    if service.count == 0 {
        return Choice::NoEndpoint;
    }
    let chosen = if service.affinity != 0 {
        sticky(&AffinityKey { service: key, client }, &service)
    } else {
        any(&service).map(|(backend, _)| backend)
    };
    match chosen {
        Some(backend) => Choice::Backend { backend, backends: service.backends },
        None => Choice::NoEndpoint,
    }
}

/// Whether a service still has the set of backends from which a socket's backend was chosen.
#[inline(always)]
pub fn still_has(dialled: &Endpoint, protocol: u8, backends: u32) -> bool {
    let key =
        ServiceKey { address: dialled.address, port: dialled.port as u16, protocol, unused: 0 };
    match unsafe { SERVICES.get(key) } {
        Some(service) => service.backends == backends && service.count != 0,
        None => false,
    }
}

#[inline(always)]
fn any(service: &Service) -> Option<(Endpoint, u32)> {
    // `checked_rem`: a panic cannot be called.
    let slot = unsafe { bpf_get_prandom_u32() }.checked_rem(service.count)?;
    backend(service.backends, slot).map(|backend| (backend, slot))
}

#[inline(always)]
fn backend(backends: u32, slot: u32) -> Option<Endpoint> {
    unsafe { BACKENDS.get(BackendKey { backends, slot }) }.copied()
}

/// The client's backend of before, if its time is not over and the set still has it.
#[inline(never)]
fn sticky(key: &AffinityKey, service: &Service) -> Option<Endpoint> {
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(affinity) = AFFINITY.get_ptr_mut(key) {
        let affinity = unsafe { &mut *affinity };
        let age = now.saturating_sub(affinity.used);
        if age < u64::from(service.affinity) * 1_000_000_000 {
            let wanted = affinity.backend;
            if let Some(slot) = slot_of(service, &wanted, affinity.slot) {
                affinity.used = now;
                affinity.slot = slot;
                return Some(wanted);
            }
        }
    }
    let (backend, slot) = any(service)?;
    let _ = AFFINITY.insert(key, Affinity { used: now, backend, slot }, 0);
    Some(backend)
}

#[inline(always)]
fn slot_of(service: &Service, wanted: &Endpoint, hint: u32) -> Option<u32> {
    if backend(service.backends, hint) == Some(*wanted) {
        return Some(hint);
    }
    let mut slot = 0;
    while slot < SCANNED {
        if slot >= service.count {
            return None;
        }
        if backend(service.backends, slot) == Some(*wanted) {
            return Some(slot);
        }
        slot += 1;
    }
    None
}
