use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV6, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::report::{errno, now, report};

/// What to connect to, and how.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to, one after the other.
    to: Vec<SocketAddr>,
    /// Sends this, and reads as much.
    #[arg(long)]
    send: Option<String>,
    /// Shuts down its writing, and reads to the end.
    #[arg(long)]
    read: bool,
    /// Dials IPv4 by an IPv6 socket, as Java and Go do.
    #[arg(long)]
    mapped: bool,
    /// By an MPTCP socket.
    #[arg(long)]
    mptcp: bool,
    /// Binds to this first.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Gives up after this long.
    #[arg(long, default_value_t = 20_000)]
    milliseconds: u64,
    /// Tries so often.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
}

/// What to send, and how.
#[derive(Debug, Args)]
pub struct DatagramOptions {
    /// Where to.
    to: SocketAddr,
    /// The payload.
    #[arg(long, default_value = "hello")]
    send: String,
    /// Connects the socket first.
    #[arg(long)]
    connected: bool,
    /// Dials IPv4 by an IPv6 socket.
    #[arg(long)]
    mapped: bool,
    /// Waits so long for the answer.
    #[arg(long, default_value_t = 20_000)]
    milliseconds: u64,
}

/// Connects to each.
pub fn connect(options: &Options) -> Result<()> {
    for _ in 0..options.repeat {
        for &to in &options.to {
            report(attempt(options, to));
        }
    }
    Ok(())
}

/// Connects once; whether that succeeds is in what is reported.
fn attempt(options: &Options, to: SocketAddr) -> Value {
    let start = Instant::now();
    let limit = Duration::from_millis(options.milliseconds);
    let stream = match dial(options, to, limit) {
        Ok(stream) => stream,
        Err(error) => {
            let micros = start.elapsed().as_micros();
            let error = errno(&error);
            return json!({
                "event": "failed", "to": to, "error": error, "micros": micros, "at": now(),
            });
        }
    };
    let micros = start.elapsed().as_micros();
    let (peer, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
    let (answer, error) = match talk(options, &stream, limit) {
        Ok(answer) => (answer, None),
        Err(error) => (None, Some(errno(&error))),
    };
    json!({
        "event": "connected", "to": to, "peer": peer, "local": local, "micros": micros,
        "answer": answer, "error": error, "at": now(),
    })
}

fn dial(options: &Options, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let to = if options.mapped { map(to) } else { to };
    let protocol = if options.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if let Some(address) = options.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
    }
    socket.connect_timeout(&to.into(), limit)?;
    Ok(socket.into())
}

fn talk(options: &Options, stream: &TcpStream, limit: Duration) -> io::Result<Option<String>> {
    let (mut reader, mut writer) = (stream, stream);
    stream.set_read_timeout(Some(limit))?;
    let mut answer = Vec::new();
    if let Some(text) = &options.send {
        writer.write_all(text.as_bytes())?;
        if !options.read {
            // An echo; the connection stays open for writing, as most clients leave it.
            answer.resize(text.len(), 0);
            reader.read_exact(&mut answer)?;
        }
    }
    if options.read {
        stream.shutdown(Shutdown::Write)?;
        reader.read_to_end(&mut answer)?;
    }
    let talked = options.send.is_some() || options.read;
    Ok(talked.then(|| String::from_utf8_lossy(&answer).into_owned()))
}

/// An IPv4 address as an IPv6 socket has it (RFC 4291, 2.5.5.2).
fn map(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddrV6::new(ip.to_ipv6_mapped(), address.port(), 0, 0).into(),
        IpAddr::V6(_) => address,
    }
}

/// Sends one datagram and waits for the answer.
pub fn datagram(options: &DatagramOptions) -> Result<()> {
    let result = ask(options);
    report(match result {
        Ok((peer, text)) => json!({ "event": "answer", "peer": peer, "text": text }),
        Err(error) => json!({ "event": "failed", "to": options.to, "error": errno(&error) }),
    });
    Ok(())
}

fn ask(options: &DatagramOptions) -> io::Result<(SocketAddr, String)> {
    let to = if options.mapped { map(options.to) } else { options.to };
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None)?;
    let socket = std::net::UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(options.milliseconds)))?;
    let payload = options.send.as_bytes();
    if options.connected {
        socket.connect(to)?;
        socket.send(payload)?;
    } else {
        socket.send_to(payload, to)?;
    }
    let mut buffer = [0; 2048];
    let (count, peer) = socket.recv_from(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
    Ok((if options.connected { socket.peer_addr()? } else { peer }, text))
}
