use crate::{Decision, Endpoint, PodId};

/// An event of the ring buffer `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEvent {
    /// When (`bpf_ktime_get_ns`, CLOCK_MONOTONIC).
    pub time: u64,
    /// The client, as it is known to the mesh (the pod, also where the proxy stands between).
    pub source: Endpoint,
    /// The destination after load balancing: the backend pod.
    pub destination: Endpoint,
    /// What the client dialled.
    pub dialled: Endpoint,
    /// The client's pod if it is on this node.
    pub source_pod: PodId,
    /// The server's pod if it is on this node.
    pub destination_pod: PodId,
    /// The verdict and what is responsible.
    pub decision: Decision,
    /// A [`FlowKind`].
    pub kind: u8,
    /// A [`crate::Path`].
    pub path: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// Bytes from the client to the server; of a close.
    pub bytes_out: u64,
    /// Bytes from the server to the client; of a close.
    pub bytes_in: u64,
    /// Nanoseconds from open to close; of a close.
    pub duration: u64,
    /// The generation of policy that decided.
    pub generation: u32,
    /// Always 0.
    pub unused: u32,
}

/// What happened to a flow.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowKind {
    /// Opened (allowed).
    Open = 0,
    /// Refused.
    Denied = 1,
    /// Closed by one of its ends.
    Close = 2,
    /// Cut, because policy no longer allows it.
    Cut = 3,
}

/// The event was seen on the way out of the source's pod.
pub const FLOW_EGRESS: u8 = 1;
/// The source's identity is proven.
pub const FLOW_PROVEN: u8 = 1 << 1;
/// The connection was accelerated.
pub const FLOW_ACCELERATED: u8 = 1 << 2;

/// Counters that the kernel side keeps. Map `COUNTERS` (per-CPU array), by index.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Counter {
    /// Flow events that found the ring buffer full, or their pod over its share.
    EventsLost = 0,
    /// Messages moved from socket to socket.
    Redirected = 1,
    /// Messages given to TCP because the reader lags behind.
    HeldByReader = 2,
    /// Messages given to TCP because earlier bytes are still in it.
    HeldByOrder = 3,
    /// Packets and calls denied.
    Denied = 4,
    /// Connections that could not be recorded because a map is full.
    ConnectionsFull = 5,
    /// Frames from a pod's interface dropped for their source address.
    Forged = 6,
    /// Ends of connections that are not accelerated because `SOCKETS` is full.
    SocketsFull = 7,
}

/// Number of [`Counter`]s.
pub const COUNTERS: u32 = 16;

crate::pod!(FlowEvent);
