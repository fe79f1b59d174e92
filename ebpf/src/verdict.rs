//! The judgement of a connection or packet between two endpoints.

use weft_common::{
    ADDRESS_HOST, ADDRESS_LOCAL, Address, AddressEntry, Config, Decision, Endpoint, POD_ENROLLED,
    POD_HOST_NETWORK, Pod, PodId, Reason, judge,
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
        Some(pod) if pod.flags & (POD_ENROLLED | POD_HOST_NETWORK) == POD_ENROLLED => Some(pod),
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
    if pod.ingress_subject == 0 {
        return Decision::because(Reason::Unrestricted);
    }
    let entry = tables::address(source);
    if entry.flags & ADDRESS_HOST != 0 {
        return Decision::because(Reason::OwnNode);
    }
    judge(&KernelTables, pod.ingress_subject, entry.class, proven, protocol, port)
}

/// A connection or flow: who, whereto, and how well its source is known.
pub struct Between<'a> {
    /// The source's pod if it is on this node, otherwise 0.
    pub source_pod: PodId,
    /// The source's address.
    pub source: &'a Address,
    /// The destination after load balancing.
    pub destination: &'a Endpoint,
    /// The destination's pod if it is on this node, otherwise 0.
    pub destination_pod: PodId,
    /// Whether the source's identity is proven.
    pub proven: bool,
    /// IP protocol number.
    pub protocol: u8,
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
    if between.source_pod != 0 && between.source_pod == between.destination_pod {
        return pack(Decision::because(Reason::Unrestricted));
    }
    let port = between.destination.port as u16;
    let mut decision = Decision::because(Reason::Unrestricted);
    if let Some(pod) = enrolled(between.source_pod) {
        // Without a restriction the destination's class does not matter.
        if pod.egress_subject != 0 {
            let entry = tables::address(&between.destination.address);
            decision = egress(pod, &entry, between.protocol, port);
            if !decision.allows() {
                return pack(decision);
            }
        }
    }
    if let Some(pod) = enrolled(between.destination_pod) {
        if pod.ingress_subject != 0 {
            decision = ingress(pod, between.source, between.proven, between.protocol, port);
        }
    }
    pack(decision)
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
