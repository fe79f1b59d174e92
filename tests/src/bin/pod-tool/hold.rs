use std::collections::BTreeMap;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use rustix::event::epoll;
use serde_json::json;

use crate::report::{errno, now, report};
use crate::system;

/// Connections to hold.
#[derive(Debug, Args)]
pub struct Options {
    /// Where to, in turn.
    to: Vec<SocketAddr>,
    /// How many.
    #[arg(long, default_value_t = 1000)]
    count: u32,
    /// Stops at so many failures in a row.
    #[arg(long, default_value_t = 100)]
    failures: u32,
    /// Reports when all of them have been cut, with the times of the first and the last.
    #[arg(long)]
    until_cut: bool,
}

/// Opens them, reports how many there are, and holds them until its input ends or it is killed.
pub fn hold(options: &Options) -> Result<()> {
    system::raise_file_limit();
    let start = Instant::now();
    let mut held = Vec::new();
    let mut errors = BTreeMap::<String, u32>::new();
    let mut failed = 0;
    for to in options.to.iter().cycle().take(options.count as usize) {
        match TcpStream::connect(to) {
            Ok(stream) => {
                held.push(stream);
                failed = 0;
            }
            Err(error) => {
                failed += 1;
                let name = errno(&error)["name"].as_str().unwrap_or_default().to_owned();
                *errors.entry(name).or_default() += 1;
            }
        }
        if failed >= options.failures {
            break;
        }
    }
    report(json!({
        "event": "holding",
        "held": held.len(),
        "errors": errors,
        "seconds": start.elapsed().as_secs_f64(),
    }));
    if options.until_cut {
        return await_cuts(&held);
    }
    loop {
        if std::io::stdin().read(&mut [0; 64]).unwrap_or(0) == 0 {
            std::thread::park();
        }
    }
}

/// Waits until each connection has ended with an error.
fn await_cuts(held: &[TcpStream]) -> Result<()> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for stream in held {
        // Errors are told without being asked for.
        let once = epoll::EventFlags::ONESHOT;
        epoll::add(&queue, stream, epoll::EventData::new_u64(0), once)?;
    }
    let data = epoll::EventData::new_u64(0);
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data }; 256];
    let (mut cut, mut first) = (0, None);
    while cut < held.len() {
        cut += epoll::wait(&queue, &mut events[..], None)?;
        first.get_or_insert_with(now);
    }
    report(json!({ "event": "cut", "count": cut, "first_at": first, "last_at": now() }));
    Ok(())
}
