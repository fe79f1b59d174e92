//! Connections of random sizes that end in every way. Both ends know every byte that is to come,
//! and how the other end is to close.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use socket2::SockRef;

use crate::bytes::Random;
use crate::report::{errno, report};

/// Longer than any exchange takes.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 1 << 15;
/// Sent by the end that is to be reset when it has all.
const GOT_ALL: u8 = 0x21;

/// Exchanges with `serve --mode exchange`.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to.
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// How many of them at a time.
    #[arg(long, default_value_t = 16)]
    parallel: u64,
    /// The most bytes in a direction.
    #[arg(long, default_value_t = 1 << 20)]
    most: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Who closes how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The client sends and half-closes, then the server does.
    ClientFirst,
    /// The server sends and half-closes, then the client does.
    ServerFirst,
    /// Both send at once, and half-close.
    Together,
    /// The client resets when it has all.
    ClientResets,
    /// The server resets when the client has all.
    ServerResets,
}

impl Order {
    const ALL: [Self; 5] = [
        Self::ClientFirst,
        Self::ServerFirst,
        Self::Together,
        Self::ClientResets,
        Self::ServerResets,
    ];
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    up: u64,
    down: u64,
    order: Order,
}

impl Plan {
    const BYTES: usize = 8;

    /// Everything follows from the seed.
    fn new(seed: u64, most: u64) -> Self {
        let mut random = Random(seed);
        let mut size = || match random.below(4) {
            0 => random.below(2),
            1 => random.below(2000),
            _ => random.below(most + 1),
        };
        let (up, down) = (size(), size());
        let order = Order::ALL[(seed % Order::ALL.len() as u64) as usize];
        Self { seed, up, down, order }
    }
}

/// Runs the client's ends.
pub fn exchange(options: &Options) -> Result<()> {
    let next = AtomicU64::new(0);
    let good = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..options.parallel {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= options.count {
                        return;
                    }
                    let plan = Plan::new(options.seed + number, options.most);
                    match ask(options.to, plan, options.most) {
                        Ok(()) => {
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => report(json!({
                            "event": "bad", "plan": format!("{plan:?}"), "error": errno(&error),
                        })),
                    }
                }
            });
        }
    });
    report(json!({ "event": "done", "good": good.into_inner(), "count": options.count }));
    Ok(())
}

fn ask(to: SocketAddr, plan: Plan, most: u64) -> io::Result<()> {
    let stream = TcpStream::connect(to)?;
    stream.set_nonblocking(true)?;
    let mut header = [0; Plan::BYTES * 2];
    header[..Plan::BYTES].copy_from_slice(&plan.seed.to_le_bytes());
    header[Plan::BYTES..].copy_from_slice(&most.to_le_bytes());
    Polled(&stream).write_all(&header)?;
    let (up, down) = (Random(plan.seed), Random(!plan.seed));
    match plan.order {
        Order::ClientFirst => {
            send(&stream, up, plan.up)?;
            stream.shutdown(Shutdown::Write)?;
            receive(&stream, down, plan.down)?;
            expect_end(&stream)
        }
        Order::ServerFirst => {
            receive(&stream, down, plan.down)?;
            expect_end(&stream)?;
            send(&stream, up, plan.up)?;
            stream.shutdown(Shutdown::Write)
        }
        Order::Together => together(&stream, (up, plan.up), (down, plan.down)),
        Order::ClientResets => {
            send(&stream, up, plan.up)?;
            receive(&stream, down, plan.down)?;
            // What a reset finds on its way may be lost: not before the server has it all.
            Polled(&stream).read_exact(&mut [0])?;
            reset(stream)
        }
        Order::ServerResets => {
            send(&stream, up, plan.up)?;
            receive(&stream, down, plan.down)?;
            Polled(&stream).write_all(&[GOT_ALL])?;
            expect_reset(&stream)
        }
    }
}

/// The server's end.
pub fn answer(stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut number = [0; Plan::BYTES];
    Polled(&stream).read_exact(&mut number)?;
    let seed = u64::from_le_bytes(number);
    Polled(&stream).read_exact(&mut number)?;
    let plan = Plan::new(seed, u64::from_le_bytes(number));
    let result = serve(stream, plan);
    report(json!({
        "event": "exchanged",
        "plan": format!("{plan:?}"),
        "good": result.is_ok(),
        "error": result.err().map(|error| errno(&error)),
    }));
    Ok(())
}

fn serve(stream: TcpStream, plan: Plan) -> io::Result<()> {
    let (up, down) = (Random(plan.seed), Random(!plan.seed));
    match plan.order {
        Order::ClientFirst => {
            receive(&stream, up, plan.up)?;
            expect_end(&stream)?;
            send(&stream, down, plan.down)?;
            stream.shutdown(Shutdown::Write)
        }
        Order::ServerFirst => {
            send(&stream, down, plan.down)?;
            stream.shutdown(Shutdown::Write)?;
            receive(&stream, up, plan.up)?;
            expect_end(&stream)
        }
        Order::Together => together(&stream, (down, plan.down), (up, plan.up)),
        Order::ClientResets => {
            receive(&stream, up, plan.up)?;
            send(&stream, down, plan.down)?;
            Polled(&stream).write_all(&[GOT_ALL])?;
            expect_reset(&stream)
        }
        Order::ServerResets => {
            receive(&stream, up, plan.up)?;
            send(&stream, down, plan.down)?;
            Polled(&stream).read_exact(&mut [0])?;
            reset(stream)
        }
    }
}

fn together(stream: &TcpStream, sent: (Random, u64), received: (Random, u64)) -> io::Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send(stream, sent.0, sent.1)?;
            stream.shutdown(Shutdown::Write)
        });
        receive(stream, received.0, received.1)?;
        expect_end(stream)?;
        sender.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))
    })
}

fn send(stream: &TcpStream, mut random: Random, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        random.fill(&mut buffer[..count]);
        Polled(stream).write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

fn receive(stream: &TcpStream, mut random: Random, mut left: u64) -> io::Result<()> {
    let (mut buffer, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        random.fill(&mut expected[..count]);
        Polled(stream).read_exact(&mut buffer[..count])?;
        if buffer[..count] != expected[..count] {
            return Err(io::Error::other(format!("other bytes, {left} before the end")));
        }
        left -= count as u64;
    }
    Ok(())
}

fn expect_end(stream: &TcpStream) -> io::Result<()> {
    match Polled(stream).read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::other("bytes beyond the end")),
    }
}

fn expect_reset(stream: &TcpStream) -> io::Result<()> {
    match Polled(stream).read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
        Ok(0) => Err(io::Error::other("an orderly end in place of a reset")),
        Ok(_) => Err(io::Error::other("bytes in place of a reset")),
    }
}

fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// A socket that does not block, with a wait where it would, as servers and runtimes use them.
struct Polled<'a>(&'a TcpStream);

impl Polled<'_> {
    fn retry<T>(
        &self,
        flags: PollFlags,
        mut work: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match work(self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            let limit = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(self.0, flags)], Some(&limit))? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for Polled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, |mut stream| stream.read(buffer))
    }
}

impl Write for Polled<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, |mut stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
