//! Uncommon uses of a socket. Each sends to an echo server and reads back, so that both
//! directions, whichever path the mesh has taken for them, carry the bytes.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::ioctl_fionread;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{SpliceFlags, pipe, splice};
use serde_json::json;
use socket2::SockRef;

use crate::bytes::Random;
use crate::report::report;
use crate::system;

/// An uncommon use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// MSG_PEEK shows what the next read gives, and takes nothing.
    Peek,
    /// FIONREAD tells how much there is.
    Fionread,
    /// The side that has shut down its writing still reads.
    HalfClose,
    /// SO_LINGER 0 resets.
    Linger,
    /// splice(2) both ways.
    Splice,
    /// sendfile(2).
    Sendfile,
    /// Edge-triggered epoll misses nothing.
    Epoll,
    /// io_uring.
    IoUring,
    /// SO_RCVLOWAT wakes late enough, and not never.
    LowWaterMark,
    /// Urgent data arrives in its place.
    Urgent,
    /// MSG_WAITALL and MSG_DONTWAIT.
    Flags,
    /// A read with a time limit ends in time.
    Timeout,
}

const PATIENCE: Duration = Duration::from_secs(30);
const MEBIBYTE: usize = 1 << 20;

/// Tries it; an error says what was otherwise than TCP has it.
pub fn run(way: Way, to: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // The first bytes may take another path than those after the handshake: all ways start on
    // a connection that has been in use.
    round_trip(&stream, b"warm")?;
    let result = match way {
        Way::Peek => peek(&stream),
        Way::Fionread => fionread(&stream),
        Way::HalfClose => half_close(&stream),
        Way::Linger => linger(stream.peer_addr()?),
        Way::Splice => splice_both_ways(&stream),
        Way::Sendfile => sendfile(&stream),
        Way::Epoll => edge_triggered(&stream),
        Way::IoUring => io_uring(&stream),
        Way::LowWaterMark => low_water_mark(&stream),
        Way::Urgent => urgent(&stream),
        Way::Flags => flags(&stream),
        Way::Timeout => timeout(&stream),
    };
    let error = result.as_ref().err().map(|error| format!("{error:#}"));
    report(json!({ "event": "tried", "way": format!("{way:?}"), "error": error }));
    Ok(())
}

fn round_trip(mut stream: &TcpStream, text: &[u8]) -> Result<()> {
    let mut answer = vec![0; text.len()];
    stream.write_all(text)?;
    stream.read_exact(&mut answer)?;
    ensure!(answer == text, "{answer:?} came back for {text:?}");
    Ok(())
}

fn await_readable(stream: &TcpStream) -> Result<()> {
    let ready =
        poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&Timespec::try_from(PATIENCE)?))?;
    ensure!(ready == 1, "poll saw nothing to read within {PATIENCE:?}");
    Ok(())
}

fn peek(mut stream: &TcpStream) -> Result<()> {
    stream.write_all(b"peek at this")?;
    await_readable(stream)?;
    let mut buffer = [0; 64];
    for _ in 0..3 {
        let (count, _) = recv(stream, &mut buffer[..4], RecvFlags::PEEK)?;
        ensure!(buffer[..count] == b"peek"[..count] && count > 0, "peeked {:?}", &buffer[..count]);
    }
    let mut text = [0; 12];
    stream.read_exact(&mut text)?;
    ensure!(&text == b"peek at this", "read {text:?} after peeking");
    round_trip(stream, b"and on")
}

fn fionread(mut stream: &TcpStream) -> Result<()> {
    stream.write_all(&[1; 1000])?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let count = ioctl_fionread(stream)?;
        if count == 1000 {
            break;
        }
        ensure!(Instant::now() < deadline, "FIONREAD says {count}, with 1000 bytes to read");
        std::thread::sleep(Duration::from_millis(1));
    }
    stream.read_exact(&mut [0; 1000])?;
    let left = ioctl_fionread(stream)?;
    ensure!(left == 0, "FIONREAD says {left} when all is read");
    Ok(())
}

fn half_close(mut stream: &TcpStream) -> Result<()> {
    let sent = random_bytes(MEBIBYTE / 2);
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut received = Vec::new();
            (&mut &*stream).read_to_end(&mut received).map(|_| received)
        });
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))
    })?;
    ensure!(received == sent, "{} bytes came back, not the {} sent", received.len(), sent.len());
    match stream.write(b"more") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => bail!("a write after shutdown gave {other:?}"),
    }
}

fn linger(to: SocketAddr) -> Result<()> {
    // One that the kernel does not give out: what other connections leave in TIME-WAIT holds theirs.
    let port = 10_000 + (std::process::id() % 20_000) as u16;
    let stream = connect_from(port, to)?;
    round_trip(&stream, b"warm")?;
    (&stream).write_all(b"lost")?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    // After a reset there is no TIME-WAIT: the same four-tuple is free.
    round_trip(&connect_from(port, to)?, b"again")
}

fn connect_from(port: u16, to: SocketAddr) -> Result<TcpStream> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.bind(&SocketAddr::new(any, port).into()).with_context(|| format!("port {port}"))?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn splice_both_ways(stream: &TcpStream) -> Result<()> {
    let sent = random_bytes(48 << 10);
    let (out, into) = pipe()?;
    let (back_out, back_into) = pipe()?;
    let mut received = Vec::new();
    for piece in sent.chunks(16 << 10) {
        rustix::io::write(&into, piece)?;
        let mut left = piece.len();
        while left > 0 {
            left -= splice(&out, None, stream, None, left, SpliceFlags::empty())?;
        }
        let mut left = piece.len();
        while left > 0 {
            await_readable(stream)?;
            let count = splice(stream, None, &back_into, None, left, SpliceFlags::empty())?;
            ensure!(count > 0, "splice from the socket gave an end");
            let mut buffer = vec![0; count];
            let count = rustix::io::read(&back_out, &mut buffer)?;
            received.extend_from_slice(&buffer[..count]);
            left -= count;
        }
    }
    ensure!(received == sent, "other bytes came back");
    Ok(())
}

fn sendfile(mut stream: &TcpStream) -> Result<()> {
    let sent = random_bytes(MEBIBYTE);
    let memory = rustix::fs::memfd_create("weft", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&sent)?;
    file.seek(SeekFrom::Start(0))?;
    let mut received = vec![0; sent.len()];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (&mut &*stream).read_exact(&mut received));
        let mut left = MEBIBYTE;
        while left > 0 {
            let count = rustix::fs::sendfile(stream, &file, None, left)?;
            ensure!(count > 0, "sendfile gave an end");
            left -= count;
        }
        reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")))?;
        Ok(())
    })?;
    ensure!(received == sent, "other bytes came back");
    stream.flush()?;
    Ok(())
}

fn edge_triggered(mut stream: &TcpStream) -> Result<()> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let interest = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&queue, stream, epoll::EventData::new_u64(1), interest)?;
    stream.set_nonblocking(true)?;
    let mut random = Random(5);
    for round in 0..200_u32 {
        let mut piece = vec![0; 1 + random.below(20_000) as usize];
        random.fill(&mut piece);
        stream.write_all(&piece)?;
        let mut received = Vec::new();
        while received.len() < piece.len() {
            let mut events = [epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(0),
            }];
            let limit = Timespec::try_from(PATIENCE)?;
            let count = epoll::wait(&queue, &mut events[..], Some(&limit))?;
            ensure!(
                count == 1,
                "no edge in round {round}, with {} of {} bytes read",
                received.len(),
                piece.len()
            );
            drain(stream, &mut received)?;
        }
        ensure!(received == piece, "other bytes came back in round {round}");
    }
    Ok(())
}

fn drain(mut stream: &TcpStream, received: &mut Vec<u8>) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => bail!("an end in place of bytes"),
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn io_uring(stream: &TcpStream) -> Result<()> {
    for round in 0..50 {
        let sent = random_bytes(10_000);
        let mut done = 0;
        while done < sent.len() {
            done += system::ring_send(stream, &sent[done..]).context("send by io_uring")?;
        }
        let mut received = vec![0; sent.len()];
        let mut filled = 0;
        while filled < received.len() {
            let count = system::ring_receive(stream, &mut received[filled..]);
            let count = count.context("receive by io_uring")?;
            ensure!(count > 0, "io_uring gave an end in round {round}");
            filled += count;
        }
        ensure!(received == sent, "other bytes came back in round {round}");
    }
    Ok(())
}

fn low_water_mark(mut stream: &TcpStream) -> Result<()> {
    system::set_low_water_mark(stream, 100)?;
    stream.write_all(&[1; 100])?;
    await_readable(stream).context("with as many bytes as SO_RCVLOWAT asks for")?;
    stream.read_exact(&mut [0; 100])?;
    system::set_low_water_mark(stream, 1)?;
    round_trip(stream, b"on")
}

fn urgent(mut stream: &TcpStream) -> Result<()> {
    // TCP itself keeps the byte out of the stream. Where sockets are joined below TCP, and in
    // tunnels of whatever mesh, there is no urgency: it arrives in its place. What is around it
    // arrives in either case, in order.
    stream.write_all(b"before ")?;
    send(stream, b"!", SendFlags::OOB)?;
    stream.write_all(b"after")?;
    let mut text = Vec::new();
    while !text.ends_with(b"after") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        text.extend_from_slice(&byte);
    }
    let kept = text == b"before after" || text == b"before !after";
    ensure!(kept, "{:?} came back", String::from_utf8_lossy(&text));
    Ok(())
}

fn flags(mut stream: &TcpStream) -> Result<()> {
    let nothing = recv(stream, &mut [0; 8][..], RecvFlags::DONTWAIT);
    ensure!(
        matches!(nothing, Err(rustix::io::Errno::AGAIN)),
        "MSG_DONTWAIT gave {nothing:?} with nothing to read"
    );
    let sent = random_bytes(100_000);
    let mut received = vec![0; sent.len()];
    let (count, _) = std::thread::scope(|scope| {
        scope.spawn(|| (&mut &*stream).write_all(&sent));
        recv(stream, &mut received[..], RecvFlags::WAITALL)
    })?;
    ensure!(count == sent.len() && received == sent, "MSG_WAITALL gave {count} bytes");
    stream.flush()?;
    Ok(())
}

fn timeout(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let start = Instant::now();
    let result = stream.read(&mut [0; 8]);
    let took = start.elapsed();
    let ended = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    ensure!(ended, "{result:?} after {took:?}");
    stream.set_read_timeout(Some(PATIENCE))?;
    round_trip(stream, b"on")
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Random(count as u64).fill(&mut bytes);
    bytes
}
