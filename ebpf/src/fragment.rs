//! Fragments follow the first of their datagram, which alone has ports. One that comes before it,
//! or whose first was refused or is forgotten, is refused.

use weft_common::{FRAGMENT_SLOTS, Fragment, FragmentKey};

use crate::maps::FRAGMENTS;
use crate::pod_packet::PodPacket;

/// A first fragment has passed.
#[inline(never)]
pub fn remember(packet: &PodPacket) {
    let _ = FRAGMENTS.insert(key(packet), value(packet), 0);
}

/// Whether the first fragment of the datagram has passed.
#[inline(never)]
pub fn follows(packet: &PodPacket) -> bool {
    match unsafe { FRAGMENTS.get(key(packet)) } {
        Some(first) => *first == value(packet),
        None => false,
    }
}

#[inline(always)]
fn key(of: &PodPacket) -> FragmentKey {
    FragmentKey { pod: of.id << 1 | of.outbound as u32, slot: of.packet.id % FRAGMENT_SLOTS }
}

#[inline(always)]
fn value(of: &PodPacket) -> Fragment {
    Fragment {
        source: of.packet.source,
        destination: of.packet.destination,
        id: of.packet.id,
        generation: of.config.generation,
    }
}
