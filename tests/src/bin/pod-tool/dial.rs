use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::report::{now, report};

/// Connections that are opened one after the other, and closed at once.
#[derive(Debug, Args)]
pub struct WatchOptions {
    /// A server.
    to: SocketAddr,
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

/// Tries without end, and reports whenever the outcome is another than before.
pub fn watch(options: &WatchOptions) -> Result<()> {
    let mut last = None;
    loop {
        let began = now();
        let dialled = socket(options.to).and_then(|socket| {
            socket.connect_timeout(&options.to.into(), Duration::from_millis(options.milliseconds))
        });
        if last != Some(dialled.is_ok()) {
            last = Some(dialled.is_ok());
            report(json!({ "event": "changed", "connects": dialled.is_ok(), "at": began }));
        }
        std::thread::sleep(Duration::from_micros(options.pause_micros));
    }
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
