/// What a pod has used of what is bounded. Value of the map `POD_USE` (hash), by [`crate::PodId`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodUse {
    /// The window of time (`bpf_ktime_get_ns` >> [`WINDOW_SHIFT`]) that `events` counts.
    pub window: u64,
    /// Flow events in this window.
    pub events: u64,
    /// Records of connections that the pod has opened.
    pub connections: u64,
    /// Records of connections to the pod whose client is elsewhere.
    pub accepted: u64,
    /// Records of connections that other pods of the node have opened to it, and closed, which
    /// it has not closed.
    pub left_open: u64,
    /// Flows of datagrams that the pod has begun, ever.
    pub sent_flows: u64,
    /// Flows of datagrams that others have begun to the pod, ever.
    pub received_flows: u64,
}

/// A window of time is 2^27 ns (134 ms).
pub const WINDOW_SHIFT: u32 = 27;
/// Events of a pod in a window that are kept while `FLOWS` is more than half full.
pub const EVENTS_PER_WINDOW: u64 = 512;
/// Denials of a pod in a window that wake the reader at once.
pub const WAKES_PER_WINDOW: u64 = 16;

/// Where the kernel keeps what acceleration reads: offsets in bytes from a `struct tcp_sock`.
/// The global `OFFSETS`, set when the programs are loaded; all zero turns acceleration off.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// `sk_backlog.rmem_alloc` of its `struct sock`.
    pub rmem_alloc: u32,
    /// `sk_rcvbuf` of its `struct sock`.
    pub rcvbuf: u32,
    /// `copied_seq`
    pub copied_seq: u32,
    /// `rcv_nxt`
    pub rcv_nxt: u32,
    /// `snd_una`
    pub snd_una: u32,
    /// `write_seq`
    pub write_seq: u32,
}

crate::pod!(PodUse, Offsets);
