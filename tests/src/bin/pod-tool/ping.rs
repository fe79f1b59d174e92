use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::forge::checksum;
use crate::report::{errno, report};

/// Sends an echo request by a raw socket, and waits for the reply.
pub fn ping(to: IpAddr, milliseconds: u64) -> Result<()> {
    let result = ask(to, Duration::from_millis(milliseconds));
    report(match result {
        Ok(took) => json!({ "event": "reply", "from": to, "micros": took.as_micros() }),
        Err(error) => json!({ "event": "failed", "to": to, "error": errno(&error) }),
    });
    Ok(())
}

fn ask(to: IpAddr, limit: Duration) -> io::Result<Duration> {
    let address = SocketAddr::new(to, 0);
    // Types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
    let (protocol, request, reply, header) = match to {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8, 0, 20),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129, 0),
    };
    let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(protocol))?;
    let id = std::process::id().to_be_bytes();
    let mut message = vec![request, 0, 0, 0, id[2], id[3], 0, 1];
    message.extend_from_slice(b"weft");
    // For ICMPv6 the kernel computes it.
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let start = Instant::now();
    socket.send_to(&message, &address.into())?;
    let mut buffer = [MaybeUninit::uninit(); 256];
    loop {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (count, from) = socket.recv_from(&mut buffer)?;
        let bytes = crate::system::initialized(&buffer, count);
        let answer = bytes.get(header..).unwrap_or_default();
        let ours = answer.len() >= 8 && answer[0] == reply && answer[4..6] == message[4..6];
        if ours && from.as_socket().is_some_and(|from| from.ip() == to) {
            return Ok(start.elapsed());
        }
    }
}
