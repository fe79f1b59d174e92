//! Frames from and to a pod, on the host's side of its interface. What a process sends through
//! AF_PACKET passes no socket's hook, so source and egress policy are checked here again. What a
//! pod's kernel takes without a socket, an echo request most of all, is judged on its way in.

use core::ptr::read_volatile;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_redirect_peer, bpf_skb_change_type};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use weft_common::{
    ADDRESS_HOST, Address, CONFIG_READY, CONNECTION_ACCELERATE, CONNECTION_ACCEPTED,
    CONNECTION_FROM_PROXY, CONNECTION_TO_PROXY, Config, ConnectionKey, Counter, Decision, Pod,
    PodId, Reason,
};

use crate::connection;
use crate::context::{TCP, UDP};
use crate::datagram;
use crate::fragment;
use crate::maps::INTERFACES;
use crate::packet::{self, Packet, Part};
use crate::pod_packet::{self, PodPacket, Sender};
use crate::tables;
use crate::verdict;

/// The next program, or the stack, decides on.
const NEXT: i32 = -1;
/// Not one of the kernel's verdicts.
const UNSEEN: i32 = -2;
/// `TCX_DROP`
const DROP: i32 = 2;
/// `skb->pkt_type` of what is for this host.
const PACKET_HOST: u32 = 0;
const ETHERNET: u32 = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
/// Where IPv4's and IPv6's headers have the protocol of what follows.
const PROTOCOL_V4: u32 = 9;
const PROTOCOL_V6: u32 = 6;

#[classifier]
pub fn pod_interface(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let (config, id, pod) = match holder(skb) {
        Ok(holder) => holder,
        Err(verdict) => return verdict,
    };
    let protocol = unsafe { read_volatile(&raw const (*skb).protocol) } as u16;
    match u16::from_be(protocol) {
        number @ (ETH_P_IP | ETH_P_IPV6) => ip(config, skb, id, pod, number == ETH_P_IPV6),
        ETH_P_ARP => arp(skb, pod),
        // No other protocol has an address that could be checked.
        _ => forged(),
    }
}

/// The pod of the mesh whose interface it is, or what becomes of the frame without one.
#[inline(always)]
fn holder(skb: *mut __sk_buff) -> Result<(&'static Config, PodId, &'static Pod), i32> {
    let interface = unsafe { read_volatile(&raw const (*skb).ifindex) };
    let Some(id) = (unsafe { INTERFACES.get(interface) }).copied() else { return Err(NEXT) };
    let Some(config) = tables::config() else { return Err(DROP) };
    let Some(pod) = tables::pod(id) else { return Err(DROP) };
    if !pod.is_enrolled() {
        return Err(NEXT);
    }
    if config.flags & CONFIG_READY == 0 {
        tables::count(Counter::Denied);
        return Err(DROP);
    }
    Ok((config, id, pod))
}

#[inline(always)]
fn ip(config: &Config, skb: *mut __sk_buff, id: PodId, pod: &Pod, v6: bool) -> i32 {
    let verdict = bare(skb, pod, v6);
    if verdict != UNSEEN {
        return verdict;
    }
    let mut packet = packet::unread();
    let read = packet::parse(skb, ETHERNET, v6, &mut packet);
    let of = PodPacket { config, id, pod, packet: &packet, outbound: true };
    if read && packet.icmp.is_error() && packet.part == Part::WHOLE {
        if let Some(quoted) = quoted(skb, packet.inner + 8, v6) {
            if pod_packet::is_own_error(pod, &packet, &quoted) {
                return NEXT;
            }
        }
    }
    let decision = if read {
        pod_packet::outbound(&of, Sender::Frame)
    } else {
        Decision::because(Reason::Unsupported)
    };
    let decision = verdict::blurred(decision);
    if decision.allows() {
        if packet.protocol != TCP || packet.part != Part::WHOLE {
            return NEXT;
        }
        return forward_packet(skb, &packet);
    }
    pod_packet::report_refusal(&of, decision);
    DROP
}

/// What becomes of a bare segment under the pod's own address: most frames of short connections.
/// `pod_packet::outbound` would say the same, later. [`UNSEEN`] of anything else. A function of
/// its own, as the next: Linux 6.1 has 512 bytes of stack for a program and all that it calls.
#[inline(never)]
fn bare(skb: *mut __sk_buff, pod: &Pod, v6: bool) -> i32 {
    let Some(segment) = packet::bare_segment(skb, ETHERNET, v6) else { return UNSEEN };
    if !pod_packet::is_own(pod, &segment.source) {
        return UNSEEN;
    }
    let (key, low) = ConnectionKey::between(
        &segment.source,
        segment.source_port,
        &segment.destination,
        segment.destination_port,
    );
    forward(skb, &key, low)
}

#[inline(never)]
fn forward_packet(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let (key, low) = packet.connection();
    forward(skb, &key, low)
}

/// Sends a segment of TCP that may pass on its way. Between two pods of this node that is straight
/// to the other's interface, once frames of both have come under their own addresses: the SYN and
/// its answer go through the node's stack, whose rules may refuse or translate them. Its
/// connection tracking, which sees no more than these, forgets them after a minute.
#[inline(always)]
fn forward(skb: *mut __sk_buff, key: &ConnectionKey, low: bool) -> i32 {
    const NOT: u8 = CONNECTION_ACCEPTED | CONNECTION_FROM_PROXY | CONNECTION_TO_PROXY;
    let Some(record) = connection::find(key) else { return NEXT };
    let interface = unsafe { read_volatile(&raw const (*skb).ifindex) };
    let (flags, own, other) = unsafe {
        if low {
            ((*record).flags, &raw mut (*record).low_interface, (*record).high_interface)
        } else {
            ((*record).flags, &raw mut (*record).high_interface, (*record).low_interface)
        }
    };
    if unsafe { *own } != interface {
        unsafe { *own = interface };
        return NEXT;
    }
    if flags & (CONNECTION_ACCELERATE | NOT) != CONNECTION_ACCELERATE || other == 0 {
        return NEXT;
    }
    // On a bridge the frame is addressed to the other pod, and so to another host for this one.
    unsafe {
        if bpf_skb_change_type(skb, PACKET_HOST) != 0 {
            return NEXT;
        }
        bpf_redirect_peer(other, 0) as i32
    }
}

/// Judges ingress of all but TCP and UDP, which go to a socket, whose hook judges them. Of those it
/// judges what comes from the node's own address without being the node's: see [`is_masqueraded`].
#[classifier]
pub fn to_pod_interface(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let protocol = unsafe { read_volatile(&raw const (*skb).protocol) } as u16;
    let v6 = match u16::from_be(protocol) {
        ETH_P_IP => false,
        ETH_P_IPV6 => true,
        _ => return NEXT,
    };
    let at = ETHERNET + if v6 { PROTOCOL_V6 } else { PROTOCOL_V4 };
    match packet::load::<u8>(skb, at) {
        Some(TCP | UDP) if has_socket(skb) => return NEXT,
        Some(TCP) if packet::goes_on(skb, ETHERNET, v6) => return NEXT,
        _ => {}
    }
    let (config, id, pod) = match holder(skb) {
        Ok(holder) => holder,
        Err(verdict) => return verdict,
    };
    ip_to_pod(config, skb, id, pod, v6)
}

#[inline(always)]
fn ip_to_pod(config: &Config, skb: *mut __sk_buff, id: PodId, pod: &Pod, v6: bool) -> i32 {
    let mut packet = packet::unread();
    let read = packet::parse(skb, ETHERNET, v6, &mut packet);
    let of = PodPacket { config, id, pod, packet: &packet, outbound: false };
    let decision = if !read {
        Decision::because(Reason::Unsupported)
    } else if !matches!(packet.protocol, TCP | UDP) {
        pod_packet::inbound_datagram(&of)
    } else if is_masqueraded(skb, &of) {
        pod_packet::from_anybody(&of)
    } else {
        // Behind extension headers, which later fragments may lack.
        if packet.part == Part::FIRST {
            fragment::remember(&of);
        }
        return NEXT;
    };
    let decision = verdict::blurred(decision);
    if decision.allows() {
        return NEXT;
    }
    pod_packet::report_refusal(&of, decision);
    DROP
}

/// Whether a socket of the node sends the packet, and nobody whose packets it forwards.
#[inline(always)]
fn has_socket(skb: *mut __sk_buff) -> bool {
    !unsafe { read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }.is_null()
}

/// Whether a packet begins something under the node's address that the node has only forwarded: a
/// client of a node port, for one, whom kube-proxy has translated. Policy lets the node in, and
/// nobody knows who this is.
#[inline(always)]
fn is_masqueraded(skb: *mut __sk_buff, of: &PodPacket) -> bool {
    let packet = of.packet;
    !has_socket(skb)
        && packet.part != Part::LATER
        && of.other().flags & ADDRESS_HOST != 0
        && if packet.protocol == TCP { packet.is_syn() } else { !datagram::is_answer(of) }
}

/// Source and destination of the packet that an ICMP error quotes.
#[inline(always)]
fn quoted(skb: *mut __sk_buff, offset: u32, v6: bool) -> Option<(Address, Address)> {
    if v6 {
        let addresses: [[u32; 4]; 2] = packet::load(skb, offset + 8)?;
        Some((Address(addresses[0]), Address(addresses[1])))
    } else {
        let addresses: [u32; 2] = packet::load(skb, offset + 12)?;
        Some((Address::from_v4(addresses[0]), Address::from_v4(addresses[1])))
    }
}

/// A pod may speak ARP for its own address, or probe with none.
#[inline(always)]
fn arp(skb: *mut __sk_buff, pod: &Pod) -> i32 {
    const SENDER: u32 = 14;
    let Some(sender) = packet::load::<[u16; 2]>(skb, ETHERNET + SENDER) else { return forged() };
    let [a, b] = sender[0].to_ne_bytes();
    let [c, d] = sender[1].to_ne_bytes();
    let sender = u32::from_ne_bytes([a, b, c, d]);
    if sender == pod.v4 || sender == 0 { NEXT } else { forged() }
}

#[inline(always)]
fn forged() -> i32 {
    tables::count(Counter::Forged);
    DROP
}
