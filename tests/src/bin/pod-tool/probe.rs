use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use crate::report::{errno, now, report};

/// A connection on which something goes on all the time.
#[derive(Debug, Args)]
pub struct Options {
    /// An echo server.
    to: SocketAddr,
    /// Ends by itself after this long.
    #[arg(long, default_value_t = 10_000)]
    milliseconds: u64,
    /// How many bytes each message has.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// Pause between messages.
    #[arg(long, default_value_t = 500)]
    pause_micros: u64,
    /// No answer for so long counts as lost.
    #[arg(long, default_value_t = 20_000)]
    patience_milliseconds: u64,
}

/// Sends numbered messages, compares what comes back, and says when and how it ended.
pub fn probe(options: &Options) -> Result<()> {
    let to = options.to;
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(options.patience_milliseconds)))?;
    let mut counts = Counts::default();
    let result = talk(options, &stream, &mut counts);
    report(json!({
        "event": "ended",
        "at": now(),
        "last_answer_at": counts.last,
        "messages": counts.messages,
        "longest_micros": counts.longest.as_micros(),
        "error": result.err().map(|error| errno(&error)),
    }));
    Ok(())
}

#[derive(Debug, Default)]
struct Counts {
    messages: u64,
    longest: Duration,
    last: u64,
}

fn talk(options: &Options, mut stream: &TcpStream, counts: &mut Counts) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_millis(options.milliseconds);
    let (mut message, mut answer) = (vec![0; options.size], vec![0; options.size]);
    while Instant::now() < deadline {
        let number = counts.messages.to_le_bytes();
        message.iter_mut().zip(number.iter().cycle()).for_each(|(to, from)| *to = *from);
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        if answer != message {
            return Err(io::Error::other("another message than the one sent came back"));
        }
        if counts.messages == 0 {
            report(json!({ "event": "established", "at": now() }));
        }
        counts.messages += 1;
        counts.longest = counts.longest.max(sent.elapsed());
        counts.last = now();
        // The load is to be steady, not all that the machine can do.
        std::thread::sleep(Duration::from_micros(options.pause_micros));
    }
    Ok(())
}
