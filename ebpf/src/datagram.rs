//! Flows without connection: UDP, ICMP, and every protocol but TCP. What a pod may send may be
//! answered, and the other way round. Each pod has room for a number of flows in each direction,
//! and its own oldest makes room for a new one.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use weft_common::{
    ADDRESS_MESHED, Counter, DATAGRAM_LIFETIME, Datagram, DatagramKey, DatagramSlot,
    DatagramSlotKey, Decision, FlowKind, Pod, PodId, Reason, judge,
};

use crate::atomic;
use crate::flow;
use crate::maps::{DATAGRAM_RING, DATAGRAMS};
use crate::packet::Packet;
use crate::pod_packet::{self, PodPacket};
use crate::tables::{self, KernelTables};
use crate::verdict;

/// The time of a flow's last packet is kept to this many nanoseconds.
const PRECISION: u64 = 1_000_000_000;

/// Set in a packed decision about a flow that was not known.
const NEW: u64 = 1 << 31;

/// Decides about a packet that a pod sends (`outbound`) or receives.
#[inline(always)]
pub fn decide(packet: &PodPacket) -> Decision {
    let known = known_or_judged(packet);
    let decision = verdict::unpack(known & !NEW);
    if known & NEW != 0 {
        report(packet, decision);
    }
    decision
}

#[inline(never)]
fn known_or_judged(of: &PodPacket) -> u64 {
    let &PodPacket { config, id, pod, packet, outbound } = of;
    let key = key(id, packet, outbound);
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(known) = DATAGRAMS.get_ptr_mut(key) {
        let known = unsafe { &mut *known };
        let age = now.saturating_sub(known.used);
        if age < DATAGRAM_LIFETIME {
            let mut decision = known.decision;
            if known.generation != config.generation {
                decision = judged(pod, &key, known.port as u16, known.outbound != 0);
                if decision.allows() {
                    known.decision = decision;
                    known.generation = config.generation;
                }
            }
            if decision.allows() {
                if age > PRECISION {
                    known.used = now;
                }
                return verdict::pack(if (known.outbound != 0) == outbound {
                    decision
                } else {
                    Decision::because(Reason::Related)
                });
            }
        }
    }
    let decision = judged(pod, &key, packet.judged_port(), outbound);
    if decision.allows() && remember(of, &key, decision) {
        return verdict::pack(decision) | NEW;
    }
    verdict::pack(decision)
}

/// Whether a packet that reaches a pod belongs to a flow that the pod has begun.
#[inline(never)]
pub fn is_answer(of: &PodPacket) -> bool {
    match unsafe { DATAGRAMS.get(&key(of.id, of.packet, false)) } {
        Some(known) => known.outbound != 0,
        None => false,
    }
}

#[inline(always)]
fn key(pod: PodId, packet: &Packet, outbound: bool) -> DatagramKey {
    let kind = if packet.icmp.is_echo() { 0 } else { packet.icmp.kind };
    if outbound {
        DatagramKey {
            local: packet.source,
            remote: packet.destination,
            pod,
            local_port: packet.source_port,
            remote_port: packet.destination_port,
            protocol: packet.protocol,
            kind,
            unused: 0,
        }
    } else {
        DatagramKey {
            local: packet.destination,
            remote: packet.source,
            pod,
            local_port: packet.destination_port,
            remote_port: packet.source_port,
            protocol: packet.protocol,
            kind,
            unused: 0,
        }
    }
}

#[inline(always)]
fn judged(pod: &Pod, key: &DatagramKey, port: u16, outbound: bool) -> Decision {
    verdict::unpack(judge_flow(pod, key, port, outbound))
}

#[inline(never)]
fn judge_flow(pod: &Pod, key: &DatagramKey, port: u16, outbound: bool) -> u64 {
    verdict::pack(judge_direction(pod, key, port, outbound))
}

#[inline(always)]
fn judge_direction(pod: &Pod, key: &DatagramKey, port: u16, outbound: bool) -> Decision {
    if !outbound {
        return verdict::ingress(pod, &key.remote, false, key.protocol, port);
    }
    if pod.egress_subject == 0 {
        return Decision::because(Reason::Unrestricted);
    }
    let class = tables::address(&key.remote).class;
    judge(&KernelTables, pod.egress_subject, class, false, key.protocol, port)
}

/// Remembers a flow, in the place of the pod's oldest of its direction. A flow that cannot be
/// remembered passes, but its answers are judged for themselves.
#[inline(never)]
fn remember(of: &PodPacket, key: &DatagramKey, decision: Decision) -> bool {
    let &PodPacket { config, packet, outbound, .. } = of;
    let Some(usage) = flow::usage(key.pod) else { return false };
    let counter = unsafe {
        if outbound { &raw mut (*usage).sent_flows } else { &raw mut (*usage).received_flows }
    };
    let position = atomic::fetch_add(counter, 1) as u32;
    let flow = Datagram {
        used: unsafe { bpf_ktime_get_ns() },
        decision,
        generation: config.generation,
        position,
        port: packet.judged_port().into(),
        outbound: outbound as u32,
    };
    let number = position.checked_rem(config.flows_per_pod).unwrap_or(0);
    let slot = DatagramSlotKey { pod: key.pod, slot: number << 1 | flow.outbound };
    if let Some(oldest) = unsafe { DATAGRAM_RING.get(slot) } {
        // It may have been forgotten and begun again since.
        let same = match unsafe { DATAGRAMS.get(&oldest.key) } {
            Some(known) => known.position == oldest.position && known.outbound == flow.outbound,
            None => false,
        };
        if same {
            let _ = DATAGRAMS.remove(&oldest.key);
        }
    }
    if DATAGRAM_RING.insert(slot, DatagramSlot { key: *key, position }, 0).is_err()
        || DATAGRAMS.insert(key, flow, 0).is_err()
    {
        tables::count(Counter::ConnectionsFull);
        return false;
    }
    true
}

/// Reports a new flow once: where it begins, if that is a pod of this node.
#[inline(never)]
fn report(of: &PodPacket, decision: Decision) {
    let other = of.other();
    let pod = verdict::local_pod(&other);
    if of.outbound || pod == 0 || other.flags & ADDRESS_MESHED == 0 {
        pod_packet::report(FlowKind::Open, of, pod, decision);
    }
}
