//! Flow events and log records from the programs, and their counters.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;
use weft_common::{COUNTERS, Counter, FlowEvent};

use super::system;

/// The programs wake the reader only when much has come together, or something is refused; what
/// is there otherwise is read as often as this.
const POLL: Duration = Duration::from_millis(50);
/// How many events are handed over at once.
const BATCH: usize = 8192;

/// How many events of the agent itself wait for a reader.
const OWN_EVENTS: usize = 1 << 17;

/// The stream of flow events: those of the programs, and those of connections that the agent has
/// cut. There is one reader at a time.
pub struct FlowEvents {
    ring: AsyncFd<RingBuf<MapData>>,
    own: CutEvents,
}

/// Events that the agent itself makes.
#[derive(Clone, Debug, Default)]
pub(super) struct CutEvents(Arc<Mutex<Vec<FlowEvent>>>);

impl CutEvents {
    /// Adds an event, unless nobody has read for long.
    pub(super) fn push(&self, event: FlowEvent) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() < OWN_EVENTS {
            events.push(event);
        } else {
            tracing::warn!("nobody reads flow events: one of a connection that was cut is lost");
        }
    }

    fn take(&self) -> Vec<FlowEvent> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FlowEvents {
    /// Has to be called inside a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>, own: CutEvents) -> io::Result<Self> {
        Ok(Self { ring: system::wait_for(ring)?, own })
    }

    /// Waits until there are events, and appends them to `events`, oldest first: at most 8192 of
    /// the programs' at once. It may be cancelled without losing any.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited for.
    pub async fn read(&mut self, events: &mut Vec<FlowEvent>) -> io::Result<()> {
        loop {
            if self.take(events) > 0 {
                return Ok(());
            }
            // Woken or not, it is time to look.
            if let Ok(ready) = timeout(POLL, self.ring.readable_mut()).await {
                ready?.clear_ready();
            }
        }
    }

    /// Appends what is there already, and says how many events it was.
    pub fn take(&mut self, events: &mut Vec<FlowEvent>) -> usize {
        let own = self.own.take();
        let ring = self.ring.get_mut();
        let mut taken = own.len();
        events.extend(own);
        while taken < BATCH {
            let Some(record) = ring.next() else { break };
            match system::from_bytes(&record) {
                Some(event) => {
                    events.push(event);
                    taken += 1;
                }
                None => tracing::error!(
                    length = record.len(),
                    "a flow event of an unknown form was left out"
                ),
            }
        }
        taken
    }
}

impl std::fmt::Debug for FlowEvents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FlowEvents").finish_non_exhaustive()
    }
}

/// The counters of the programs, summed over the CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters([u64; COUNTERS as usize]);

impl Counters {
    pub(super) fn read(map: &PerCpuArray<MapData, u64>) -> Result<Self, aya::maps::MapError> {
        let mut sums = [0; COUNTERS as usize];
        for (index, sum) in (0..).zip(&mut sums) {
            *sum = map.get(&index, 0)?.iter().sum();
        }
        Ok(Self(sums))
    }

    /// One of them.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or_default()
    }
}

/// The programs' own log lines.
pub struct BpfLog {
    logger: AsyncFd<EbpfLogger<Bridge>>,
}

impl BpfLog {
    /// Has to be called inside a tokio runtime.
    pub(super) fn new(ebpf: &mut aya::Ebpf) -> io::Result<Option<Self>> {
        match EbpfLogger::init_with_logger(ebpf, Bridge) {
            Ok(logger) => Ok(Some(Self { logger: system::wait_for(logger)? })),
            // Programs without log statements have no such map.
            Err(aya_log::Error::MapNotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Hands the programs' log lines to `tracing`, for as long as it is polled.
    ///
    /// # Errors
    /// If the ring buffer cannot be waited for.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let mut ready = self.logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

impl std::fmt::Debug for BpfLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("BpfLog").finish_non_exhaustive()
    }
}

/// From the records of the `log` crate, which aya-log makes, to `tracing`.
struct Bridge;

impl log::Log for Bridge {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let (program, message) = (record.target(), record.args());
        match record.level() {
            log::Level::Error => tracing::error!(target: "weft::bpf", program, "{message}"),
            log::Level::Warn => tracing::warn!(target: "weft::bpf", program, "{message}"),
            log::Level::Info => tracing::info!(target: "weft::bpf", program, "{message}"),
            log::Level::Debug => tracing::debug!(target: "weft::bpf", program, "{message}"),
            log::Level::Trace => tracing::trace!(target: "weft::bpf", program, "{message}"),
        }
    }

    fn flush(&self) {}
}
