//! Streams of bytes that the receiver can check.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;

use crate::report::{errno, report};

/// After this long without a byte taken, a writer is held back.
const HELD_BACK: Duration = Duration::from_millis(500);

/// Pseudo-random numbers (SplitMix64): both ends make the same from one seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next, below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// The next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Sends words that count up, in pieces of random size.
pub fn send_words(to: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    let mut random = Random(to.port().into());
    let words = bytes / 8;
    stream.write_all(&words.to_le_bytes())?;
    let (mut next, mut buffer) = (0, Vec::new());
    while next < words {
        let count = (1 + random.below(8192)).min(words - next);
        buffer.clear();
        buffer.extend((next..next + count).flat_map(u64::to_le_bytes));
        // Not only whole words: a piece may end anywhere.
        let cut = usize::try_from(random.below(buffer.len() as u64))?;
        stream.write_all(&buffer[..cut])?;
        stream.write_all(&buffer[cut..])?;
        next += count;
    }
    // The server closes when it has read all.
    let answered = stream.read(&mut [0; 1])?;
    report(json!({ "event": "sent", "words": words, "answered": answered }));
    Ok(())
}

/// Words that came.
pub struct Checked {
    pub words: u64,
    /// Whether each was one more than the last.
    pub in_order: bool,
}

/// Reads how many words there are, and checks that they count up; stalls now and then.
pub fn check_words(mut stream: impl Read, stall: Duration) -> io::Result<Checked> {
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    check(stream, Some(u64::from_le_bytes(count)), stall)
}

/// Checks so many words, or all until the end.
fn check(mut stream: impl Read, count: Option<u64>, stall: Duration) -> io::Result<Checked> {
    let mut random = Random(7);
    let mut buffer = vec![0; 1 << 18];
    let (mut next, mut filled, mut in_order) = (0_u64, 0, true);
    let (mut since, mut until_stall) = (0, 1 << 20);
    while count.is_none_or(|count| next < count) {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            break;
        }
        filled += read;
        let whole = filled / 8 * 8;
        for word in buffer[..whole].chunks_exact(8) {
            in_order &= word == next.to_le_bytes();
            next += 1;
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
        since += read as u64;
        if since > until_stall && !stall.is_zero() {
            // The reader that lags behind is what is tested.
            thread::sleep(stall);
            (since, until_stall) = (0, random.below(16 << 20));
        }
    }
    Ok(Checked { words: next, in_order: in_order && filled == 0 })
}

/// Reads when there is something: on a socket that is accelerated, a read that waits while another
/// thread sends may get EAGAIN.
struct Polled<'a>(&'a TcpStream);

impl Read for Polled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            poll(&mut [PollFd::new(self.0, PollFlags::IN)], None)?;
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// The client's end of [`trade_words`], until standard input ends.
pub fn trade(to: SocketAddr) -> Result<()> {
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    report(json!({ "event": "trading" }));
    trade_words(&stream, Duration::from_millis(100), || {
        // An end is an end, also by an error.
        let _end = io::copy(&mut io::stdin(), &mut io::sink());
    })?;
    Ok(())
}

/// Sends words that count up, and checks those that come, both at the same time. It ends sending a
/// piece after `until` says so, and reads until the other end has done the same.
pub fn trade_words(
    stream: &TcpStream,
    stall: Duration,
    until: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let ending = Arc::new(AtomicBool::new(false));
    let mut writer = stream.try_clone()?;
    let stop = ending.clone();
    thread::spawn(move || {
        until();
        stop.store(true, Ordering::Release);
    });
    let stop = ending.clone();
    let sending = thread::spawn(move || -> io::Result<u64> {
        let (mut random, mut next) = (Random(11), 0);
        loop {
            let last = stop.load(Ordering::Acquire);
            let count = 1 + random.below(8192);
            let piece: Vec<u8> = (next..next + count).flat_map(u64::to_le_bytes).collect();
            writer.write_all(&piece)?;
            next += count;
            if last {
                writer.shutdown(Shutdown::Write)?;
                return Ok(next);
            }
            thread::sleep(Duration::from_millis(random.below(4)));
        }
    });
    let checked = check(Polled(stream), None, stall)?;
    ending.store(true, Ordering::Release);
    let sent = sending.join().map_err(|_| io::Error::other("the sender has panicked"))??;
    let Checked { words, in_order } = checked;
    report(json!({ "event": "traded", "sent": sent, "words": words, "in_order": in_order }));
    Ok(())
}

/// Writes until the peer's window is shut.
pub fn fill(to: SocketAddr, limit: u64) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_write_timeout(Some(HELD_BACK))?;
    let start = Instant::now();
    let piece = vec![0x77; 1 << 16];
    let (mut bytes, mut end) = (0, None);
    while bytes < limit {
        match stream.write(&piece) {
            Ok(count) => bytes += count as u64,
            Err(error) => {
                end = Some(error);
                break;
            }
        }
    }
    let held_back = end.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    report(json!({
        "event": "filled",
        "bytes": bytes,
        "held_back": held_back,
        "error": end.as_ref().map(errno),
        "seconds": start.elapsed().as_secs_f64(),
    }));
    Ok(())
}
