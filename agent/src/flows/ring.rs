use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use weft_common::FlowEvent;

/// The last events. The writer is never held up: a reader that lags behind loses the oldest, and
/// is told how many.
pub struct FlowRing {
    events: Mutex<Events>,
    capacity: usize,
    next: watch::Sender<u64>,
    /// Events that never came here: the kernel's ring buffer was full.
    lost: watch::Sender<u64>,
}

struct Events {
    ring: VecDeque<FlowEvent>,
    /// Number of the event that comes next, counted from 0.
    next: u64,
}

impl Events {
    fn first(&self) -> u64 {
        self.next - self.ring.len() as u64
    }
}

impl FlowRing {
    /// Remembers up to `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self {
            events: Mutex::new(Events { ring: VecDeque::new(), next: 0 }),
            capacity: capacity.max(1),
            next: watch::Sender::new(0),
            lost: watch::Sender::new(0),
        }
    }

    /// Adds events, in order.
    pub fn push(&self, events: &[FlowEvent]) {
        if events.is_empty() {
            return;
        }
        let next = {
            let mut kept = self.events();
            let skipped = events.len().saturating_sub(self.capacity);
            let surplus = (kept.ring.len() + events.len() - skipped).saturating_sub(self.capacity);
            kept.ring.drain(..surplus);
            kept.ring.extend(events.iter().skip(skipped));
            kept.next += events.len() as u64;
            kept.next
        };
        self.next.send_replace(next);
    }

    /// Says how many events have been lost on the way here since the start.
    pub fn set_lost(&self, total: u64) {
        self.lost.send_if_modified(|lost| {
            let changed = *lost != total;
            *lost = total;
            changed
        });
    }

    /// How many events have been lost on the way here since the start.
    pub fn lost(&self) -> u64 {
        *self.lost.borrow()
    }

    /// Numbers of the oldest event that is kept, and of the one that comes next.
    pub fn bounds(&self) -> (u64, u64) {
        let events = self.events();
        (events.first(), events.next)
    }

    /// Appends at most `most` events from number `from` on to `out`. Returns how many were no
    /// longer there, and the number to go on with.
    pub fn read(&self, from: u64, most: usize, out: &mut Vec<FlowEvent>) -> (u64, u64) {
        let events = self.events();
        let start = from.clamp(events.first(), events.next);
        let skip = (start - events.first()) as usize;
        let before = out.len();
        out.extend(events.ring.iter().skip(skip).take(most));
        (start.saturating_sub(from), start + (out.len() - before) as u64)
    }

    /// Wakes when events come: holds the number of the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        // Nothing that holds the lock can fail between changes.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
