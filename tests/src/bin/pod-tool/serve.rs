use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use rustix::event::epoll;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::report::{errno, now, report};
use crate::{bytes, exchange, system};

/// What to serve.
#[derive(Debug, Args)]
pub struct Options {
    /// Ports for TCP.
    #[arg(long)]
    tcp: Vec<u16>,
    /// Ports for UDP (echo).
    #[arg(long)]
    udp: Vec<u16>,
    /// What to do with a TCP connection.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// One socket for both families, as Java and Go have, in place of one each.
    #[arg(long)]
    dual: bool,
    /// MPTCP listeners, as Go makes.
    #[arg(long)]
    mptcp: bool,
    /// How long a stall of a reader of words lasts.
    #[arg(long, default_value_t = 100)]
    stall_milliseconds: u64,
    /// Reports no connection, only what goes wrong.
    #[arg(long)]
    quiet: bool,
}

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Sends back what comes.
    #[default]
    Echo,
    /// Reads, and reports how much came.
    Sink,
    /// Reads numbered words and checks them, stalling now and then.
    Words,
    /// The same, told of new bytes by edge-triggered epoll, and taking a short read to mean that
    /// there are no more.
    EdgeWords,
    /// The other end of `trade`.
    Trade,
    /// Reads to the end, and sends it all back a while later.
    Late,
    /// Never reads.
    Stall,
    /// The other end of `exchange`.
    Exchange,
    /// Says who the peer is, as `accept()` and `getpeername()` show it, and closes.
    Peer,
}

/// Serves until killed.
pub fn serve(options: &Options) -> Result<()> {
    system::raise_file_limit();
    let mut servers = Vec::new();
    for &port in &options.tcp {
        for listener in listeners(options, port)? {
            let (mode, quiet) = (options.mode, options.quiet);
            let stall = Duration::from_millis(options.stall_milliseconds);
            servers.push(thread::spawn(move || accept(&listener, mode, stall, quiet)));
        }
    }
    for &port in &options.udp {
        for address in wildcards(port) {
            let socket = bind_datagrams(address).with_context(|| format!("UDP {address}"))?;
            servers.push(thread::spawn(move || echo_datagrams(&socket)));
        }
    }
    report(json!({ "event": "listening" }));
    for server in servers {
        server.join().ok();
    }
    Ok(())
}

fn wildcards(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
}

fn listeners(options: &Options, port: u16) -> Result<Vec<TcpListener>> {
    let [v4, v6] = wildcards(port);
    let addresses = if options.dual { vec![v6] } else { vec![v4, v6] };
    let listen = |address: SocketAddr| -> io::Result<TcpListener> {
        let protocol = if options.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(!options.dual)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    let listeners = addresses
        .into_iter()
        .map(|address| listen(address).with_context(|| format!("listen on {address}")));
    listeners.collect()
}

fn accept(listener: &TcpListener, mode: Mode, stall: Duration, quiet: bool) {
    let mut held = Vec::new();
    loop {
        let (stream, accepted) = match listener.accept() {
            Ok(connection) => connection,
            Err(error) => {
                report(json!({ "event": "accept", "error": errno(&error) }));
                // Out of descriptors, most likely: the next accept fails at once again.
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        if !quiet {
            report(json!({
                "event": "accept",
                "peer": accepted,
                "getpeername": stream.peer_addr().ok(),
                "local": stream.local_addr().ok(),
                "at": now(),
            }));
        }
        if mode == Mode::Stall {
            // Not a thread each: there may be a hundred thousand.
            held.push(stream);
            continue;
        }
        let started = thread::Builder::new().stack_size(1 << 18).spawn(move || {
            let result = handle(stream, accepted, mode, stall);
            if let Err(error) = result
                && !quiet
            {
                report(json!({ "event": "error", "peer": accepted, "error": errno(&error) }));
            }
        });
        if let Err(error) = started {
            report(json!({ "event": "accept", "error": errno(&error) }));
        }
    }
}

fn handle(stream: TcpStream, peer: SocketAddr, mode: Mode, stall: Duration) -> io::Result<()> {
    match mode {
        Mode::Echo => {
            io::copy(&mut &stream, &mut &stream)?;
            stream.shutdown(Shutdown::Write)
        }
        Mode::Sink => {
            let count = io::copy(&mut &stream, &mut io::sink());
            let (bytes, error) = match count {
                Ok(bytes) => (Some(bytes), None),
                Err(error) => (None, Some(errno(&error))),
            };
            report(json!({ "event": "end", "peer": peer, "bytes": bytes, "error": error }));
            Ok(())
        }
        Mode::Words => {
            let bytes::Checked { words, in_order } = bytes::check_words(&stream, stall)?;
            report(json!({ "event": "words", "words": words, "in_order": in_order }));
            Ok(())
        }
        Mode::EdgeWords => {
            let reader = EdgeReader::new(&stream)?;
            // By then all that will be sent is on its way.
            thread::sleep(stall);
            let bytes::Checked { words, in_order } = bytes::check_words(reader, stall)?;
            report(json!({ "event": "words", "words": words, "in_order": in_order }));
            Ok(())
        }
        // Until the client ends.
        Mode::Trade => bytes::trade_words(&stream, stall, || {
            loop {
                thread::park();
            }
        }),
        Mode::Exchange => exchange::answer(stream),
        Mode::Peer => {
            let text = json!({ "accepted": peer, "getpeername": stream.peer_addr()? });
            (&stream).write_all(text.to_string().as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            (&stream).read(&mut [0; 64]).map(drop)
        }
        Mode::Late => {
            let mut text = Vec::new();
            (&stream).read_to_end(&mut text)?;
            // Longer than any acknowledgement is delayed.
            thread::sleep(Duration::from_millis(300));
            (&stream).write_all(&text)
        }
        Mode::Stall => Ok(()),
    }
}

/// Reads as tokio does: after a short read it waits for the next edge.
struct EdgeReader<'a> {
    stream: &'a TcpStream,
    queue: OwnedFd,
    ready: bool,
}

impl<'a> EdgeReader<'a> {
    fn new(stream: &'a TcpStream) -> io::Result<Self> {
        let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let interest = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(&queue, stream, epoll::EventData::new_u64(1), interest)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, queue, ready: false })
    }

    fn await_edge(&mut self) -> io::Result<()> {
        let data = epoll::EventData::new_u64(0);
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data }];
        while !self.ready {
            let count = epoll::wait(&self.queue, &mut events[..], None)?;
            let flags = events[0].flags;
            self.ready = count == 1 && flags.contains(epoll::EventFlags::IN);
        }
        Ok(())
    }
}

impl Read for EdgeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.await_edge()?;
            match self.stream.read(buffer) {
                Ok(count) => {
                    self.ready = count == buffer.len();
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready = false,
                Err(error) => return Err(error),
            }
        }
    }
}

fn bind_datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((count, peer)) => {
                let text = String::from_utf8_lossy(&buffer[..count]);
                report(json!({ "event": "datagram", "peer": peer, "text": text, "at": now() }));
                if let Err(error) = socket.send_to(&buffer[..count], peer) {
                    report(json!({ "event": "answer", "peer": peer, "error": errno(&error) }));
                }
            }
            Err(error) => report(json!({ "event": "datagram", "error": errno(&error) })),
        }
    }
}
