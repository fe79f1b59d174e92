use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::report::{errno, now, report};

/// Connections that are opened one after the other, and closed at once.
#[derive(Debug, Args)]
pub struct WatchOptions {
    /// A server.
    to: SocketAddr,
    /// It is an echo server, and has to answer.
    #[arg(long)]
    echo: bool,
    /// Between attempts.
    #[arg(long, default_value_t = 2_000)]
    pause_micros: u64,
    /// No answer for so long counts as a refusal.
    #[arg(long, default_value_t = 250)]
    milliseconds: u64,
}

/// Whose `connect()` is timed.
#[derive(Debug, Args)]
pub struct DialOptions {
    /// Servers, which are dialled in turn.
    to: Vec<SocketAddr>,
    /// How often in all.
    #[arg(long, default_value_t = 20_000)]
    count: usize,
}

/// Tries until killed. Reports whenever the outcome is another than before, with how many attempts
/// there have been until then, how many of them failed, and how long the longest of the others took;
/// and these numbers once a second.
pub fn watch(options: &WatchOptions) -> Result<()> {
    let mut last = None;
    let (mut attempts, mut failures) = (0_u64, 0_u64);
    let mut told = Instant::now();
    let mut longest = 0;
    loop {
        let began = now();
        let start = Instant::now();
        let outcome = attempt(options);
        if outcome.is_ok() {
            longest = longest.max(start.elapsed().as_micros());
        }
        attempts += 1;
        failures += u64::from(outcome.is_err());
        let connects = outcome.is_ok();
        let mut line = json!({
            "event": "counted", "connects": connects, "at": began,
            "attempts": attempts, "failures": failures, "longest_micros": longest,
        });
        if last != Some(connects) {
            last = Some(connects);
            line["event"] = "changed".into();
            line["error"] = outcome.err().map(|error| errno(&error)).into();
            report(line);
        } else if told.elapsed() > Duration::from_secs(1) {
            told = Instant::now();
            report(line);
        }
        std::thread::sleep(Duration::from_micros(options.pause_micros));
    }
}

fn attempt(options: &WatchOptions) -> io::Result<()> {
    const MESSAGE: &[u8] = b"are you there?";
    let limit = Duration::from_millis(options.milliseconds);
    let socket = socket(options.to)?;
    socket.connect_timeout(&options.to.into(), limit)?;
    if options.echo {
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(MESSAGE)?;
        let mut answer = [0; MESSAGE.len()];
        stream.read_exact(&mut answer)?;
        if answer != MESSAGE {
            return Err(io::Error::other("another answer than an echo"));
        }
    }
    Ok(())
}

/// Reports how long `connect()` took, in nanoseconds.
pub fn dial(options: &DialOptions) -> Result<()> {
    ensure!(options.count > 0 && !options.to.is_empty(), "nothing to dial");
    let mut took = Vec::with_capacity(options.count);
    for &to in options.to.iter().cycle().take(options.count) {
        let (socket, address) = (socket(to)?, to.into());
        let began = Instant::now();
        socket.connect(&address)?;
        took.push(began.elapsed().as_nanos());
    }
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100);
    report(json!({
        "event": "dialled", "count": took.len(), "p50_ns": at(50), "p99_ns": at(99),
    }));
    Ok(())
}

/// Closed by a reset: ports would run out if each stayed in TIME_WAIT.
fn socket(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}
