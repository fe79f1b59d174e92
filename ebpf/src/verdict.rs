//! The judgement of a connection or packet between two endpoints.

pub use weft_common::Between;
use weft_common::{
    ADDRESS_LOCAL, Address, AddressEntry, Config, Decision, Endpoint, Pod, PodId, judge,
    judge_source,
};

use crate::tables::{self, KernelTables};

/// The pod's address of a family.
#[inline(always)]
pub fn address_of(pod: &Pod, v4: bool) -> Address {
    if v4 { Address::from_v4(pod.v4) } else { pod.v6 }
}

/// A local pod of the mesh with an address of its own.
#[inline(always)]
pub fn enrolled(id: PodId) -> Option<&'static Pod> {
    match tables::pod(id) {
        Some(pod) if pod.is_enrolled() => Some(pod),
        _ => None,
    }
}

/// May the pod send to a destination of this kind?
#[inline(always)]
pub fn egress(pod: &Pod, destination: &AddressEntry, protocol: u8, port: u16) -> Decision {
    judge(&KernelTables, pod.egress_subject, destination.class, false, protocol, port)
}

/// May this source reach the pod?
#[inline(always)]
pub fn ingress(pod: &Pod, source: &Address, proven: bool, protocol: u8, port: u16) -> Decision {
    judge_source(&KernelTables, pod, source, proven, protocol, port)
}

/// Judges both ends, as far as they are pods of the mesh on this node.
#[inline(always)]
pub fn both_ends(between: &Between) -> Decision {
    unpack(judge_both(between))
}

/// A decision in one register: functions of this target return no more.
#[inline(always)]
pub fn pack(decision: Decision) -> u64 {
    u64::from(decision.rule) << 32 | u64::from(decision.reason)
}

#[inline(always)]
pub fn unpack(packed: u64) -> Decision {
    Decision { rule: (packed >> 32) as u32, reason: packed as u32 }
}

/// The same decision, of which the verifier knows nothing ([`tables::zero`]).
#[inline(always)]
pub fn blurred(decision: Decision) -> Decision {
    let zero = tables::zero();
    Decision { rule: decision.rule | zero, reason: decision.reason | zero }
}

#[inline(never)]
fn judge_both(between: &Between) -> u64 {
    pack(between.judge(&KernelTables))
}

/// The pod at a local address, 0 for none.
#[inline(always)]
pub fn local_pod(entry: &AddressEntry) -> PodId {
    if entry.flags & ADDRESS_LOCAL != 0 { entry.pod } else { 0 }
}

/// Whether the endpoint is a port of this node's proxy.
#[inline(always)]
pub fn is_proxy_port(config: &Config, endpoint: &Endpoint) -> bool {
    if endpoint.port != config.outbound_port && endpoint.port != config.inbound_port {
        return false;
    }
    if endpoint.address.is_v4() {
        endpoint.address.v4() == config.node_v4
    } else {
        endpoint.address == config.node_v6
    }
}
