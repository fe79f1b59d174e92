//! Which pod a process or a socket belongs to: by the ancestors of its cgroup.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id};
use weft_common::{CONFIG_READY, CONFIG_UNKNOWN_ALLOWED, Config, POD_OF_THE_MESH, Pod, PodId};

use crate::maps::{CGROUPS, LEVEL};
use crate::tables;

/// How deep the root of the pods' cgroups may lie.
const DEEPEST: i32 = 24;

/// What a program does with a process or socket.
pub enum Caller {
    /// A pod of the mesh.
    Enrolled(PodId, &'static Pod),
    /// Leave it alone: the mesh's own, a pod outside the mesh, or a pod with the node's identity.
    Other,
    /// The agent does not know it, or has not applied a policy yet: deny.
    Unknown,
}

/// Whose process runs.
#[inline(always)]
pub fn of_current(config: &Config) -> Caller {
    caller(config, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// Whose socket a packet goes to or comes from.
#[inline(always)]
pub fn of_packet(config: &Config, skb: *mut __sk_buff) -> Caller {
    caller(config, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

#[inline(always)]
fn caller(config: &Config, ancestor: impl Fn(i32) -> u64) -> Caller {
    let unknown =
        if config.flags & CONFIG_UNKNOWN_ALLOWED != 0 { Caller::Other } else { Caller::Unknown };
    let Some(level) = level(config.root_cgroup, &ancestor) else { return unknown };
    // A pod's cgroup lies below its QoS class's, or directly below the root.
    let id = match find(ancestor(level + 2)) {
        0 => find(ancestor(level + 1)),
        id => id,
    };
    if id == POD_OF_THE_MESH {
        return Caller::Other;
    }
    if id == 0 || config.flags & CONFIG_READY == 0 {
        return unknown;
    }
    match tables::pod(id) {
        Some(pod) if pod.is_enrolled() => Caller::Enrolled(id, pod),
        Some(_) => Caller::Other,
        None => unknown,
    }
}

#[inline(always)]
fn find(cgroup: u64) -> PodId {
    match unsafe { CGROUPS.get(cgroup) } {
        Some(id) => *id,
        None => 0,
    }
}

/// The level of the root, from the cache or found.
#[inline(always)]
fn level(root: u64, ancestor: &impl Fn(i32) -> u64) -> Option<i32> {
    let cache = LEVEL.get_ptr_mut(0)?;
    let cached = unsafe { *cache } as i32;
    if cached > 0 && cached <= DEEPEST && ancestor(cached - 1) == root {
        return Some(cached - 1);
    }
    let mut level = 0;
    while level < DEEPEST {
        if ancestor(level) == root {
            unsafe { *cache = level as u32 + 1 };
            return Some(level | tables::zero() as i32);
        }
        level += 1;
    }
    None
}
