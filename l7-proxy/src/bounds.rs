use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;

/// Bounds and times of the data path.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections that one pod may have open, in each direction. Each worker thread keeps its
    /// share of it, so that they need no common counter.
    pub connections_per_pod: usize,
    /// Streams of a tunnel; beyond that another is opened.
    pub streams_per_tunnel: u32,
    /// Tunnels from one identity to one at one proxy, per worker thread.
    pub tunnels_per_key: usize,
    /// Tunnels that one address may have open here, per worker thread: one for each pair of its
    /// identities and this node's, and more of those that are busy.
    pub tunnels_per_peer: usize,
    /// TLS handshakes that one address may have under way, per worker thread.
    pub handshakes_per_peer: usize,
    /// How long a connection waits for a workload or certificate that is not known yet.
    pub unknown_wait: Duration,
    /// How long opening a TCP connection to a pod or node may take.
    pub connect: Duration,
    /// How long a tunnel is tried again where the other node has no proxy, or one that does not
    /// know its pods yet: it is being replaced.
    pub absence: Duration,
    /// How long the handshakes of a tunnel may take.
    pub handshake: Duration,
    /// After how long without streams a tunnel is closed.
    pub tunnel_idle: Duration,
    /// Between two pings on a tunnel.
    pub ping_interval: Duration,
    /// How long a pong may take.
    pub ping_timeout: Duration,
    /// How long connections are served after a request to stop, if any are open.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_pod: 16_384,
            streams_per_tunnel: 4_096,
            tunnels_per_key: 64,
            tunnels_per_peer: 16_384,
            handshakes_per_peer: 128,
            unknown_wait: Duration::from_secs(1),
            connect: Duration::from_secs(10),
            absence: Duration::from_secs(15),
            handshake: Duration::from_secs(10),
            tunnel_idle: Duration::from_secs(60),
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}

/// Counts what each holder (a pod, an address) has, on one thread, up to a bound.
pub(crate) struct Shares<K> {
    bound: usize,
    held: Rc<RefCell<HashMap<K, usize>>>,
}

/// One of a holder's share; given back when dropped.
pub(crate) struct Share<K: Eq + Hash> {
    holder: K,
    held: Rc<RefCell<HashMap<K, usize>>>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, held: Rc::default() }
    }

    /// One more for `holder`; `None` if it has its share already.
    pub(crate) fn take(&self, holder: K) -> Option<Share<K>> {
        let mut held = self.held.borrow_mut();
        let count = held.entry(holder).or_insert(0);
        if *count >= self.bound {
            return None;
        }
        *count += 1;
        Some(Share { holder, held: self.held.clone() })
    }

    /// Whether nobody holds anything.
    pub(crate) fn is_unused(&self) -> bool {
        self.held.borrow().is_empty()
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}
