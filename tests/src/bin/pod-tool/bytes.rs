//! Streams of bytes that the receiver can check.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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

/// Reads how many words there are, and checks that they count up; stalls now and then.
pub fn check_words(mut stream: impl Read, stall: Duration) -> io::Result<(u64, bool)> {
    let mut random = Random(7);
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    let count = u64::from_le_bytes(count);
    let mut buffer = vec![0; 1 << 18];
    let (mut next, mut filled, mut in_order) = (0_u64, 0, true);
    let (mut since, mut until_stall) = (0, 1 << 20);
    while next < count {
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
            std::thread::sleep(stall);
            (since, until_stall) = (0, random.below(16 << 20));
        }
    }
    Ok((next, in_order && filled == 0))
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
