//! What a packet's headers say.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_load_bytes;
use core::mem::MaybeUninit;

use weft_common::{Address, ConnectionKey, Endpoint};

use crate::context::{ICMP, ICMPV6, TCP, UDP};
use crate::tables;

/// IPv6 extension headers that are walked. What has more is refused.
const EXTENSIONS: u32 = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
const DCCP: u8 = 33;

const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// Where a packet stands among the fragments of its datagram. Not an `enum`, whose values the
/// compiler would know: see [`Packet::blur`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Part(u8);

impl Part {
    pub const WHOLE: Self = Self(0);
    pub const FIRST: Self = Self(1);
    pub const LATER: Self = Self(2);
}

/// A packet's headers.
pub struct Packet {
    pub source: Address,
    pub destination: Address,
    /// IP protocol number; ICMPv6 counts as ICMP.
    pub protocol: u8,
    pub part: Part,
    /// Identification, of a fragment.
    pub id: u32,
    /// Source port in host byte order; of an echo its identifier; otherwise 0.
    pub source_port: u16,
    /// Destination port in host byte order; of an echo its identifier; otherwise 0.
    pub destination_port: u16,
    /// TCP's sequence number, as it stands.
    pub sequence: u32,
    /// TCP's flags.
    pub tcp_flags: u8,
    /// Whether there are bytes behind TCP's header.
    payload: u8,
    pub icmp: Icmp,
    /// Offset of what follows the IP headers.
    pub inner: u32,
}

/// What kind of ICMP message a packet is.
#[derive(Clone, Copy)]
pub struct Icmp {
    /// The message's type; 0 where the packet is not ICMP.
    pub kind: u8,
    v6: u8,
}

impl Icmp {
    /// An error about another packet, which it quotes.
    #[inline(always)]
    pub fn is_error(self) -> bool {
        if self.v6 != 0 {
            self.kind >= 1 && self.kind <= 4
        } else {
            matches!(self.kind, 3 | 11 | 12)
        }
    }

    /// Neighbour discovery and multicast listener discovery.
    #[inline(always)]
    pub fn is_housekeeping(self) -> bool {
        self.v6 != 0 && matches!(self.kind, 130..=136 | 143)
    }

    /// Echo request or reply.
    #[inline(always)]
    pub fn is_echo(self) -> bool {
        if self.v6 != 0 { matches!(self.kind, 128 | 129) } else { matches!(self.kind, 0 | 8) }
    }
}

impl Packet {
    /// Begins a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        begins(self.tcp_flags)
    }

    /// Ends or refuses a TCP connection.
    #[inline(always)]
    pub fn is_reset(&self) -> bool {
        self.tcp_flags & TCP_RST != 0
    }

    /// Whether there are bytes behind TCP's header.
    #[inline(always)]
    pub fn has_payload(&self) -> bool {
        self.payload != 0
    }

    /// Hides from the verifier what it knows of the values, so that it looks at what follows once
    /// and not for each kind of packet.
    #[inline(always)]
    fn blur(&mut self) {
        let zero = tables::zero();
        let mut word = 0;
        while word < 4 {
            self.source.0[word] |= zero;
            self.destination.0[word] |= zero;
            word += 1;
        }
        self.id |= zero;
        self.inner |= zero;
        self.source_port |= zero as u16;
        self.destination_port |= zero as u16;
        self.protocol |= zero as u8;
        self.part.0 |= zero as u8;
        self.tcp_flags |= zero as u8;
        self.payload |= zero as u8;
        self.icmp.kind |= zero as u8;
        self.icmp.v6 |= zero as u8;
    }

    /// The key of its TCP connection, and whether its sender is the lower end.
    #[inline(always)]
    pub fn connection(&self) -> (ConnectionKey, bool) {
        ConnectionKey::between(
            &self.source,
            self.source_port,
            &self.destination,
            self.destination_port,
        )
    }

    #[inline(always)]
    pub fn source(&self) -> Endpoint {
        Endpoint { address: self.source, port: self.source_port.into() }
    }

    #[inline(always)]
    pub fn destination(&self) -> Endpoint {
        Endpoint { address: self.destination, port: self.destination_port.into() }
    }

    /// What policy calls the destination port ([`weft_common::PortKey`]): of ICMP the type.
    #[inline(always)]
    pub fn judged_port(&self) -> u16 {
        if self.protocol == ICMP { u16::from(self.icmp.kind) << 8 } else { self.destination_port }
    }
}

#[inline(always)]
pub fn load<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    let result = unsafe {
        bpf_skb_load_bytes(
            skb.cast_const().cast(),
            offset,
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
        )
    };
    if result == 0 { Some(unsafe { value.assume_init() }) } else { None }
}

#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total: u16,
    id: u16,
    fragment: u16,
    lifetime: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C)]
struct Ipv6Header {
    version_and_flow: u32,
    payload: u16,
    next: u8,
    hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[repr(C)]
struct TcpHeader {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    length: u8,
    flags: u8,
}

/// The headers of most packets of TCP, which have no options or extensions of IP.
#[repr(C)]
struct Plain<Ip> {
    ip: Ip,
    tcp: TcpHeader,
}

/// A segment of TCP that opens nothing and carries no data.
pub struct BareSegment {
    pub source: Address,
    pub destination: Address,
    /// Ports in host byte order.
    pub source_port: u16,
    pub destination_port: u16,
}

/// The packet whose IP header begins at `offset`, if it is easily seen to be a bare segment: an
/// IP header with options or extensions behind it is not looked at.
#[inline(always)]
pub fn bare_segment(skb: *mut __sk_buff, offset: u32, v6: bool) -> Option<BareSegment> {
    let (source, destination, tcp, length) = if v6 {
        let Plain::<Ipv6Header> { ip, tcp } = load(skb, offset)?;
        if ip.next != TCP {
            return None;
        }
        (Address(ip.source), Address(ip.destination), tcp, u16::from_be(ip.payload))
    } else {
        let Plain::<Ipv4Header> { ip, tcp } = load(skb, offset)?;
        let fragment = u16::from_be(ip.fragment) & (FRAGMENT_OFFSET | MORE_FRAGMENTS);
        if ip.protocol != TCP || ip.version_and_length != 0x45 || fragment != 0 {
            return None;
        }
        let (source, destination) = (ip.source, ip.destination);
        let length = u16::from_be(ip.total).wrapping_sub(20);
        (Address::from_v4(source), Address::from_v4(destination), tcp, length)
    };
    if begins(tcp.flags) || length != u16::from(tcp.length >> 4) * 4 {
        return None;
    }
    let (source_port, destination_port) = (u16::from_be(tcp.source), u16::from_be(tcp.destination));
    Some(BareSegment { source, destination, source_port, destination_port })
}

/// Whether the packet of TCP whose IP header begins at `offset` is easily seen to begin no
/// connection.
#[inline(always)]
pub fn goes_on(skb: *mut __sk_buff, offset: u32, v6: bool) -> bool {
    const FLAGS: u32 = 13;
    let length = match (v6, load::<u8>(skb, offset)) {
        (true, _) => 40,
        (false, Some(0x45)) => 20,
        _ => return false,
    };
    match load::<u8>(skb, offset + length + FLAGS) {
        Some(flags) => !begins(flags),
        None => false,
    }
}

/// Whether TCP's flags are those of a segment that begins a connection.
#[inline(always)]
fn begins(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Reads the headers of a packet whose IP header begins at `offset`. False: it is not one that
/// could be understood, and is refused.
#[inline(never)]
pub fn parse(skb: *mut __sk_buff, offset: u32, v6: bool, packet: &mut Packet) -> bool {
    let read = headers(skb, offset, v6, packet).is_some();
    packet.blur();
    read
}

#[inline(always)]
fn headers(skb: *mut __sk_buff, offset: u32, v6: bool, packet: &mut Packet) -> Option<()> {
    let end;
    if v6 {
        let header: Ipv6Header = load(skb, offset)?;
        packet.source = Address(header.source);
        packet.destination = Address(header.destination);
        packet.protocol = header.next;
        packet.inner = offset + 40;
        end = packet.inner + u32::from(u16::from_be(header.payload));
        extensions(skb, packet)?;
    } else {
        let header: Ipv4Header = load(skb, offset)?;
        packet.source = Address::from_v4(header.source);
        packet.destination = Address::from_v4(header.destination);
        packet.protocol = header.protocol;
        packet.inner = offset + u32::from(header.version_and_length & 0xf) * 4;
        end = offset + u32::from(u16::from_be(header.total));
        let fragment = u16::from_be(header.fragment);
        packet.id = u32::from(header.id);
        packet.part = part(fragment & FRAGMENT_OFFSET, fragment & MORE_FRAGMENTS != 0);
    }
    if packet.part == Part::LATER {
        return Some(());
    }
    match packet.protocol {
        TCP => {
            let header: TcpHeader = load(skb, packet.inner)?;
            packet.source_port = u16::from_be(header.source);
            packet.destination_port = u16::from_be(header.destination);
            packet.sequence = header.sequence;
            packet.tcp_flags = header.flags;
            packet.payload = (packet.inner + u32::from(header.length >> 4) * 4 < end) as u8;
        }
        UDP | UDP_LITE | SCTP | DCCP => {
            let ports: [u16; 2] = load(skb, packet.inner)?;
            packet.source_port = u16::from_be(ports[0]);
            packet.destination_port = u16::from_be(ports[1]);
        }
        ICMP | ICMPV6 => {
            if (packet.protocol == ICMPV6) != v6 {
                return None;
            }
            packet.protocol = ICMP;
            let header: [u8; 8] = load(skb, packet.inner)?;
            packet.icmp = Icmp { kind: header[0], v6: v6 as u8 };
            if packet.icmp.is_echo() {
                let id = u16::from_be_bytes([header[4], header[5]]);
                packet.source_port = id;
                packet.destination_port = id;
            }
        }
        _ => {}
    }
    Some(())
}

/// A packet of which nothing is known.
#[inline(always)]
pub fn unread() -> Packet {
    // Of a zero that it knows the compiler makes a call of a loop over bytes.
    let zero = tables::zero();
    let nowhere = Address([zero; 4]);
    Packet {
        source: nowhere,
        destination: nowhere,
        protocol: zero as u8,
        part: Part(zero as u8),
        id: zero,
        source_port: zero as u16,
        destination_port: zero as u16,
        sequence: zero,
        tcp_flags: zero as u8,
        payload: zero as u8,
        icmp: Icmp { kind: zero as u8, v6: zero as u8 },
        inner: zero,
    }
}

#[inline(always)]
fn part(offset: u16, more: bool) -> Part {
    match (offset, more) {
        (0, false) => Part::WHOLE,
        (0, true) => Part::FIRST,
        _ => Part::LATER,
    }
}

/// Walks IPv6 extension headers to the one that says what the packet carries.
#[inline(always)]
fn extensions(skb: *mut __sk_buff, packet: &mut Packet) -> Option<()> {
    let mut walked = 0;
    while walked < EXTENSIONS {
        let next = packet.protocol;
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                let header: [u8; 2] = load(skb, packet.inner)?;
                packet.protocol = header[0];
                packet.inner += if next == AUTHENTICATION {
                    (u32::from(header[1]) + 2) * 4
                } else {
                    (u32::from(header[1]) + 1) * 8
                };
            }
            FRAGMENT => {
                let header: [u16; 4] = load(skb, packet.inner)?;
                packet.protocol = header[0].to_ne_bytes()[0];
                let offset = u16::from_be(header[1]);
                packet.part = part(offset >> 3, offset & 1 != 0);
                packet.id = u32::from(header[2]) << 16 | u32::from(header[3]);
                packet.inner += 8;
                if packet.part == Part::LATER {
                    return Some(());
                }
            }
            _ => return Some(()),
        }
        walked += 1;
    }
    match packet.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => None,
        _ => Some(()),
    }
}
