use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::report::{errno, report};
use crate::system;

/// How a forged packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// By a raw IP socket with a header of its own.
    Raw,
    /// As a frame through AF_PACKET, past the hooks of the cgroup.
    Packet,
}

/// Sends it, and says whether the kernel took it.
pub fn forge(
    way: Way,
    source: SocketAddrV4,
    to: SocketAddrV4,
    udp: Option<&str>,
    count: u32,
) -> Result<()> {
    let packet = match udp {
        Some(text) => datagram(source, to, text.as_bytes()),
        None => syn(source, to),
    };
    let mut sent = 0;
    let mut failure = None;
    for _ in 0..count {
        let result = match way {
            Way::Raw => send_raw(&packet, to),
            Way::Packet => send_frame(&packet),
        };
        match result {
            Ok(()) => sent += 1,
            Err(error) => failure = Some(error),
        }
    }
    report(json!({ "event": "forged", "sent": sent, "error": failure.as_ref().map(errno_of) }));
    Ok(())
}

fn errno_of(error: &anyhow::Error) -> serde_json::Value {
    match error.downcast_ref::<io::Error>() {
        Some(error) => errno(error),
        None => error.to_string().into(),
    }
}

fn send_raw(packet: &[u8], to: SocketAddrV4) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_header_included_v4(true)?;
    let address = SocketAddrV4::new(*to.ip(), 0);
    socket.send_to(packet, &address.into())?;
    Ok(())
}

fn send_frame(packet: &[u8]) -> Result<()> {
    let interface = fs::read_to_string("/proc/thread-self/net/dev")?;
    let interface = interface.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    interface.context("there is no eth0")?;
    let gateway = gateway()?;
    system::send_frame("eth0", neighbour(gateway)?, packet)?;
    Ok(())
}

/// The default gateway, from `/proc/net/route` (addresses are in the machine's byte order).
fn gateway() -> Result<Ipv4Addr> {
    let table = fs::read_to_string("/proc/thread-self/net/route")?;
    let found = table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    });
    found.context("there is no default route")
}

/// The hardware address of a neighbour, from the kernel's table; something is sent there first.
fn neighbour(address: Ipv4Addr) -> Result<[u8; 6]> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"?", (address, 9)).ok();
    let find = || {
        let table = fs::read_to_string("/proc/thread-self/net/arp").ok()?;
        let line = table.lines().find(|line| line.starts_with(&format!("{address} ")))?;
        let text = line.split_whitespace().nth(3)?;
        let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
        let bytes: [u8; 6] = bytes.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()?;
        (bytes != [0; 6]).then_some(bytes)
    };
    let what = format!("the hardware address of {address}");
    weft_tests::eventually_within(Duration::from_secs(30), &what, find)
}

/// A TCP SYN.
fn syn(source: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    const OFFSET_AND_SYN: [u8; 2] = [5 << 4, 2];
    let mut segment = Vec::new();
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&1_u32.to_be_bytes());
    segment.extend_from_slice(&0_u32.to_be_bytes());
    segment.extend_from_slice(&OFFSET_AND_SYN);
    segment.extend_from_slice(&u16::MAX.to_be_bytes());
    segment.extend_from_slice(&[0; 4]);
    packet(source, to, libc::IPPROTO_TCP as u8, 16, segment)
}

/// A UDP datagram.
fn datagram(source: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut segment = Vec::new();
    segment.extend_from_slice(&source.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(&[0; 2]);
    segment.extend_from_slice(payload);
    packet(source, to, libc::IPPROTO_UDP as u8, 6, segment)
}

/// Puts an IPv4 header (RFC 791) before a segment, and the sum into it at `sum_at`.
fn packet(
    source: SocketAddrV4,
    to: SocketAddrV4,
    protocol: u8,
    sum_at: usize,
    mut segment: Vec<u8>,
) -> Vec<u8> {
    const VERSION_AND_LENGTH: u8 = 4 << 4 | 5;
    const HEADER: u16 = 20;
    const TIME_TO_LIVE: u8 = 64;
    let (from, to) = (source.ip().octets(), to.ip().octets());
    let length = segment.len() as u16;
    let mut pseudo = [from, to].concat();
    pseudo.extend_from_slice(&[0, protocol]);
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&segment);
    let sum = checksum(&pseudo);
    segment[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());

    let mut header = vec![VERSION_AND_LENGTH, 0];
    header.extend_from_slice(&(HEADER + length).to_be_bytes());
    header.extend_from_slice(&[0, 0, 0, 0, TIME_TO_LIVE, protocol, 0, 0]);
    header.extend_from_slice(&from);
    header.extend_from_slice(&to);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend_from_slice(&segment);
    header
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_to_nothing() {
        let address = |last| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 80);
        let packet = syn(address(1), address(2));
        assert_eq!(packet.len(), 40);
        assert_eq!(checksum(&packet[..20]), 0);
    }
}
