//! Packets that reach a pod's sockets or leave them.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_sk_fullsock;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use core::ffi::c_void;
use core::ptr::read_volatile;
use weft_common::{
    Address, AddressEntry, Config, Counter, Decision, FLOW_EGRESS, FlowKind, Path, Pod, PodId,
    Reason, SOCKET_ADMITTED, SOCKET_AWAITS_PROXY, judge,
};

use crate::connection;
use crate::context::{self, ICMP, TCP, UDP};
use crate::datagram;
use crate::flow::{self, Flow};
use crate::fragment;
use crate::identity::{self, Caller};
use crate::maps::{ADMITTED, REFUSED_SYNS};
use crate::packet::{self, Packet, Part};
use crate::tables::{self, KernelTables};
use crate::verdict::{self, Between};

const PASS: i32 = 1;
const DROP: i32 = 0;
/// The loopback interface of every network namespace.
const LOOPBACK: u32 = 1;
/// `bpf_sock.state` of a listener.
const TCP_LISTEN: u32 = 10;
/// For how long a connection waits for the node's proxy to listen, in nanoseconds.
const PROXY_MAY_BE_AWAY: u64 = 15_000_000_000;

#[cgroup_skb]
pub fn pod_ingress(ctx: SkBuffContext) -> i32 {
    packet_of_pod::<false>(ctx.skb.skb)
}

#[cgroup_skb]
pub fn pod_egress(ctx: SkBuffContext) -> i32 {
    packet_of_pod::<true>(ctx.skb.skb)
}

#[inline(always)]
fn packet_of_pod<const OUTBOUND: bool>(skb: *mut __sk_buff) -> i32 {
    // A pod always reaches itself.
    if unsafe { read_volatile(&raw const (*skb).ifindex) } == LOOPBACK {
        return PASS;
    }
    let Some(config) = tables::config() else { return DROP };
    let socket = unsafe { read_volatile(&raw const (*skb).__bindgen_anon_2.sk) };
    let mut listening = false;
    let mut tcp = false;
    if !socket.is_null() {
        if let Some(state) = context::state(socket.cast::<c_void>()) {
            let looked_at = if OUTBOUND { 0 } else { SOCKET_AWAITS_PROXY };
            if state.flags & (SOCKET_ADMITTED | looked_at) == SOCKET_ADMITTED
                && state.generation == config.generation
            {
                return PASS;
            }
        }
        let full = unsafe { bpf_sk_fullsock(socket) };
        if !full.is_null() {
            unsafe {
                tcp = read_volatile(&raw const (*full).protocol) == u32::from(TCP);
                listening = tcp && read_volatile(&raw const (*full).state) == TCP_LISTEN;
            }
        }
    }

    let v6 = unsafe { read_volatile(&raw const (*skb).protocol) } == u32::from(0x86dd_u16.to_be());
    let mut packet = packet::unread();
    let read = packet::parse(skb, 0, v6, &mut packet);
    // Kernel TCP sockets send with their own endpoints only, so a record is theirs.
    if read && tcp && packet.protocol == TCP && packet.part == Part::WHOLE {
        match recorded(config, &packet) {
            Record::None => {}
            Record::Allows => {
                if !OUTBOUND && packet.is_reset() && awaits_proxy(socket.cast(), &packet) {
                    return DROP;
                }
                refresh(config, socket.cast::<c_void>());
                return PASS;
            }
            Record::Closes => return PASS,
            Record::Denies => {
                tables::count(Counter::Denied);
                return DROP;
            }
        }
    }
    let (id, pod) = match identity::of_packet(config, skb) {
        Caller::Enrolled(id, pod) => (id, pod),
        Caller::Other => return PASS,
        Caller::Unknown => {
            tables::count(Counter::Denied);
            return DROP;
        }
    };
    let of = PodPacket { config, id, pod, packet: &packet, outbound: OUTBOUND };
    let decision = if !read {
        Decision::because(Reason::Unsupported)
    } else if OUTBOUND {
        outbound(&of, if tcp { Sender::Tcp } else { Sender::Other })
    } else {
        inbound(&of, listening)
    };
    let decision = verdict::blurred(decision);
    if decision.allows() {
        return PASS;
    }
    report_refusal(&of, decision);
    DROP
}

/// A socket whose packets were just found to be allowed need not be asked again until the policy
/// changes.
#[inline(always)]
fn refresh(config: &Config, socket: *mut c_void) {
    if socket.is_null() {
        return;
    }
    if let Some(state) = context::state(socket) {
        if state.flags & SOCKET_ADMITTED != 0 {
            state.generation = config.generation;
        }
    }
}

/// Whether the pod's socket awaits the node's proxy, and the connection is new. A proxy that is being
/// replaced does not listen, and the node's stack refuses for it. Without that refusal the pod's TCP
/// sends its SYN again, until a proxy answers.
#[inline(never)]
fn awaits_proxy(socket: *mut c_void, packet: &Packet) -> bool {
    let Some(state) = context::state(socket) else { return false };
    if state.flags & SOCKET_AWAITS_PROXY == 0 {
        return false;
    }
    let (key, _) = packet.connection();
    match connection::find(&key) {
        Some(record) => connection::age(record) < PROXY_MAY_BE_AWAY,
        None => false,
    }
}

/// What the record of a TCP connection says of a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    /// There is none, or it does not speak of this packet.
    None = 0,
    Allows = 1,
    /// The connection is being cut, but a packet without data may still close it.
    Closes = 2,
    Denies = 3,
}

#[inline(never)]
fn recorded(config: &Config, packet: &Packet) -> Record {
    let (key, sender_low) = packet.connection();
    let Some(record) = connection::find(&key) else { return Record::None };
    // Only the client sends a SYN, and only while it is there does the record vouch for it.
    if packet.is_syn()
        && (connection::client_is_low(record) != sender_low || !connection::vouches(record))
    {
        return Record::None;
    }
    if connection::allowed(config, record) {
        Record::Allows
    } else if packet.is_syn() || packet.has_payload() {
        Record::Denies
    } else {
        Record::Closes
    }
}

/// Counts and reports a packet that was refused; of an attempt to connect, its first.
#[inline(never)]
pub fn report_refusal(of: &PodPacket, decision: Decision) {
    tables::count(Counter::Denied);
    if of.packet.protocol == TCP && of.packet.is_syn() && sent_again(of.packet) {
        return;
    }
    report(FlowKind::Denied, of, verdict::local_pod(&of.other()), decision);
}

/// Reports what has become of a packet. `other` is the pod at its other end.
#[inline(always)]
pub fn report(kind: FlowKind, of: &PodPacket, other: PodId, decision: Decision) {
    let &PodPacket { config, id, packet, outbound, .. } = of;
    let (source_pod, destination_pod) = if outbound { (id, other) } else { (other, id) };
    let destination = packet.destination();
    let event = Flow {
        source: &packet.source(),
        destination: &destination,
        dialled: &destination,
        source_pod,
        destination_pod,
        decision,
        generation: config.generation,
        path: Path::Untouched as u8,
        protocol: packet.protocol,
        flags: if outbound { FLOW_EGRESS } else { 0 },
    };
    flow::emit(kind, id, &event, None);
}

/// Whether a refused SYN has been reported before: TCP sends it again until it gives up.
#[inline(never)]
fn sent_again(packet: &Packet) -> bool {
    let (key, _) = packet.connection();
    if let Some(reported) = unsafe { REFUSED_SYNS.get(key) } {
        if *reported == packet.sequence {
            return true;
        }
    }
    let _ = REFUSED_SYNS.insert(key, packet.sequence, 0);
    false
}

/// A packet of a pod.
pub struct PodPacket<'a> {
    pub config: &'a Config,
    pub id: PodId,
    pub pod: &'a Pod,
    pub packet: &'a Packet,
    /// The pod sends it.
    pub outbound: bool,
}

impl PodPacket<'_> {
    /// What is known of the address at its other end.
    #[inline(always)]
    pub fn other(&self) -> AddressEntry {
        let packet = self.packet;
        tables::address(if self.outbound { &packet.destination } else { &packet.source })
    }
}

/// What is known of who sends a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A TCP socket of the kernel.
    Tcp,
    /// A socket of another kind, perhaps a raw one.
    Other,
    /// It was seen on the pod's interface: the pod's kernel, or a frame that a process made.
    Frame,
}

/// Decides about a packet that a pod sends.
#[inline(always)]
pub fn outbound(of: &PodPacket, sender: Sender) -> Decision {
    let &PodPacket { config, pod, packet, .. } = of;
    if packet.icmp.is_housekeeping() && may_keep_house(pod, &packet.source) {
        return Decision::because(Reason::Unrestricted);
    }
    if asks_for_address(packet) {
        return Decision::because(Reason::Unrestricted);
    }
    if !is_own(pod, &packet.source) {
        tables::count(Counter::Forged);
        return Decision::because(Reason::ForgedSource);
    }
    // Errors that the pod's kernel sends pass no socket of the pod's. See `interface`.
    if packet.part == Part::LATER {
        return following(of);
    }
    let decision = if packet.protocol == TCP {
        // Without data it can open nothing, and may answer what has lost its record.
        if sender == Sender::Frame && !packet.is_syn() && !packet.has_payload() {
            return Decision::because(Reason::Related);
        }
        match recorded(config, packet) {
            Record::Allows | Record::Closes => Decision::because(Reason::Related),
            Record::Denies => return Decision::because(Reason::NoRule),
            Record::None if sender == Sender::Frame && was_admitted(of) => {
                Decision::because(Reason::Established)
            }
            // Only the kernel's own sockets answer: what a process makes up begins something.
            Record::None => {
                let decision = unrecorded(of, sender == Sender::Tcp);
                if decision.allows() && sender == Sender::Tcp {
                    admit(of);
                }
                decision
            }
        }
    } else {
        datagram::decide(of)
    };
    remembered(of, decision)
}

/// A packet of a TCP socket without a record passes. Its frame comes to the pod's interface next,
/// where its socket can no longer be seen.
#[inline(never)]
fn admit(of: &PodPacket) {
    let (key, _) = of.packet.connection();
    let _ = ADMITTED.insert(key, of.config.generation, 0);
}

#[inline(never)]
fn was_admitted(of: &PodPacket) -> bool {
    let (key, _) = of.packet.connection();
    match unsafe { ADMITTED.get(key) } {
        Some(generation) => *generation == of.config.generation,
        None => false,
    }
}

/// Decides about a packet that reaches a pod.
#[inline(always)]
fn inbound(of: &PodPacket, listening: bool) -> Decision {
    let packet = of.packet;
    // Sockets get whole datagrams; a raw socket may get fragments.
    if packet.protocol == TCP && packet.part != Part::LATER {
        remembered(of, unrecorded(of, !listening))
    } else {
        inbound_datagram(of)
    }
}

/// The same of a packet that is not TCP's, or a fragment without ports.
#[inline(always)]
pub fn inbound_datagram(of: &PodPacket) -> Decision {
    let packet = of.packet;
    if packet.icmp.is_error() || packet.icmp.is_housekeeping() {
        return Decision::because(Reason::Related);
    }
    if packet.part == Part::LATER {
        return following(of);
    }
    remembered(of, datagram::decide(of))
}

/// Decides about a packet for a pod of which only the way is known, and not the sender: it passes
/// where everybody may.
#[inline(always)]
pub fn from_anybody(of: &PodPacket) -> Decision {
    remembered(of, verdict::unpack(judge_anybody(of)))
}

#[inline(never)]
fn judge_anybody(of: &PodPacket) -> u64 {
    let packet = of.packet;
    let anybody = if packet.source.is_v4() { Address::from_v4(0) } else { Address::UNSPECIFIED };
    let class = tables::address(&anybody).class;
    let subject = of.pod.ingress_subject;
    let port = packet.destination_port;
    verdict::pack(judge(&KernelTables, subject, class, false, packet.protocol, port))
}

/// What follows a first fragment that passes, passes.
#[inline(always)]
fn remembered(of: &PodPacket, decision: Decision) -> Decision {
    if decision.allows() && of.packet.part == Part::FIRST {
        fragment::remember(of);
    }
    decision
}

/// TCP without a record: a new connection of a client elsewhere, of a socket that no program has
/// seen, or one from before the pod was enrolled, which may run in either direction.
#[inline(always)]
fn unrecorded(of: &PodPacket, either_direction: bool) -> Decision {
    verdict::unpack(judge_unrecorded(of, either_direction))
}

#[inline(never)]
fn judge_unrecorded(of: &PodPacket, either_direction: bool) -> u64 {
    let &PodPacket { config, id, packet, outbound, .. } = of;
    let decision = if outbound {
        // A SYN-ACK and what follows it answer a client.
        connection::to_unknown_server(config, id, &packet.source, &packet.destination())
    } else {
        if packet.is_syn() && connection::has_most(config, id, true) {
            return verdict::pack(Decision::because(Reason::ConnectionLimit));
        }
        from_client(id, packet)
    };
    if decision.allows() || packet.is_syn() || !either_direction {
        return verdict::pack(decision);
    }
    let reverse = if outbound {
        verdict::both_ends(&Between {
            source_pod: 0,
            source: &packet.destination,
            destination: &packet.source(),
            destination_pod: id,
            proven: false,
            protocol: TCP,
        })
    } else {
        connection::to_unknown_server(config, id, &packet.destination, &packet.source())
    };
    verdict::pack(if reverse.allows() { Decision::because(Reason::Established) } else { decision })
}

#[inline(always)]
fn from_client(id: PodId, packet: &Packet) -> Decision {
    verdict::both_ends(&Between {
        source_pod: 0,
        source: &packet.source,
        destination: &packet.destination(),
        destination_pod: id,
        proven: false,
        protocol: TCP,
    })
}

#[inline(always)]
fn following(of: &PodPacket) -> Decision {
    if fragment::follows(of) {
        Decision::because(Reason::Related)
    } else {
        Decision::because(Reason::Unsupported)
    }
}

/// Whether the address is the pod's own.
#[inline(always)]
pub fn is_own(pod: &Pod, source: &Address) -> bool {
    if source.is_v4() {
        pod.v4 != 0 && source.v4() == pod.v4
    } else {
        !pod.v6.is_unspecified() && *source == pod.v6
    }
}

/// Neighbour discovery comes from the pod's address, a link-local one, or none yet.
#[inline(always)]
fn may_keep_house(pod: &Pod, source: &Address) -> bool {
    let link_local = u32::from_be(source.0[0]) & 0xffc0_0000 == 0xfe80_0000;
    link_local || *source == Address::UNSPECIFIED || *source == pod.v6
}

/// DHCP, of a pod that has no address yet.
#[inline(always)]
fn asks_for_address(packet: &Packet) -> bool {
    packet.protocol == UDP
        && packet.part == Part::WHOLE
        && packet.source.is_unspecified()
        && packet.source.is_v4()
        && packet.source_port == 68
        && packet.destination_port == 67
        && packet.destination.v4() == u32::MAX
}

/// Whether an ICMP error, sent by the pod's kernel, is about a packet that the pod was sent by the
/// error's destination.
#[inline(always)]
pub fn is_own_error(pod: &Pod, packet: &Packet, quoted: &(Address, Address)) -> bool {
    packet.protocol == ICMP
        && packet.icmp.is_error()
        && quoted.0 == packet.destination
        && is_own(pod, &quoted.1)
}
