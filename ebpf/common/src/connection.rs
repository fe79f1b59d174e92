use crate::{Address, Decision, Endpoint, PodId};

/// A TCP connection as both its ends see it: the lower of the two endpoints (address words
/// compared as they stand, then ports) is `low`. Key of the map `CONNECTIONS` (hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ConnectionKey {
    /// Address of the lower endpoint.
    pub low: Address,
    /// Address of the higher endpoint.
    pub high: Address,
    /// Port of the lower endpoint, host byte order.
    pub low_port: u16,
    /// Port of the higher endpoint, host byte order.
    pub high_port: u16,
}

impl ConnectionKey {
    /// The key of the connection between two endpoints, and whether the first is its lower one.
    #[inline(always)]
    pub fn between(one: &Address, one_port: u16, other: &Address, other_port: u16) -> (Self, bool) {
        let lower = if one.0[3] != other.0[3] {
            one.0[3] < other.0[3]
        } else if one.0[2] != other.0[2] {
            one.0[2] < other.0[2]
        } else if one.0[1] != other.0[1] {
            one.0[1] < other.0[1]
        } else if one.0[0] != other.0[0] {
            one.0[0] < other.0[0]
        } else {
            one_port <= other_port
        };
        // References, so that nothing is copied twice: the eBPF stack has 512 bytes.
        let (low, high, low_port, high_port) = if lower {
            (one, other, one_port, other_port)
        } else {
            (other, one, other_port, one_port)
        };
        (Self { low: *low, high: *high, low_port, high_port }, lower)
    }
}

/// One end of a connection. Key of the map `SOCKETS` (sock hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SocketKey {
    /// Address of this end.
    pub local: Address,
    /// Address of the other end.
    pub remote: Address,
    /// Port of this end, host byte order.
    pub local_port: u16,
    /// Port of the other end, host byte order.
    pub remote_port: u16,
}

impl SocketKey {
    /// The other end's key.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
        }
    }

    /// The key of the connection, and whether this end is its lower one.
    #[inline(always)]
    pub fn connection(&self) -> (ConnectionKey, bool) {
        ConnectionKey::between(&self.local, self.local_port, &self.remote, self.remote_port)
    }
}

/// The path of a connection.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Path {
    /// The mesh leaves it alone.
    Untouched = 0,
    /// From socket to socket on this node.
    Direct = 1,
    /// Through the node's proxy and an mTLS tunnel.
    Tunnel = 2,
    /// Through a proxy that speaks HTTP.
    L7 = 3,
}

/// What the kernel attests to the node's proxy about an accepted connection: the value of
/// `getsockopt(SOL_IP, SO_WEFT_ORIGIN)`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// What the client dialled (a service or a pod).
    pub destination: Endpoint,
    /// The backend that was chosen.
    pub backend: Endpoint,
    /// The client's own endpoint.
    pub source: Endpoint,
    /// The client's pod.
    pub pod: PodId,
}

/// What the proxy tells the kernel before it connects to a pod on behalf of a remote client:
/// `setsockopt(SOL_IP, SO_WEFT_SOURCE)`. The kernel judges the pod's ingress policy for this
/// source as proven, and shows it to the pod as its peer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProvenSource {
    /// The client's endpoint. Its identity has been verified by the proxy.
    pub source: Endpoint,
    /// What the client dialled.
    pub destination: Endpoint,
}

/// Option of level `SOL_IP` that answers with [`Origin`].
pub const SO_WEFT_ORIGIN: i32 = 0x5745;
/// Option of level `SOL_IP` that takes [`ProvenSource`].
pub const SO_WEFT_SOURCE: i32 = 0x5746;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`, of levels `SOL_IP` and `SOL_IPV6`.
pub const SO_ORIGINAL_DST: i32 = 80;

/// A TCP connection of a pod in the mesh. Value of the map `CONNECTIONS`. It lives from the
/// client's `TCP_CONNECT_CB` (or, for a client elsewhere, from the server's
/// `PASSIVE_ESTABLISHED_CB`) until those of its sockets that are on this node have closed; it
/// vouches for a SYN only while its client's socket is there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// What the client dialled, the backend chosen for it, and who the client is. For a
    /// connection of the proxy to a pod: the remote client.
    pub origin: Origin,
    /// The server's pod, if it is on this node.
    pub server: PodId,
    /// What admitted it.
    pub decision: Decision,
    /// The generation of the policy that admitted it.
    pub generation: u32,
    /// A [`Path`].
    pub path: u8,
    /// `CONNECTION_*` bits.
    pub flags: u8,
    /// A `HELD_*` value: whether bytes from the lower end are in TCP, and must be read before
    /// redirection.
    pub low_held: u8,
    /// The same for bytes from the higher end.
    pub high_held: u8,
    /// Always 0.
    pub unused: u32,
    /// The host's interface from which frames of the lower end come, 0 where none has come yet.
    pub low_interface: u32,
    /// The same of the higher end.
    pub high_interface: u32,
    /// When it was opened (`bpf_ktime_get_ns`); 0 once its close has been counted.
    pub opened: u64,
    /// Address of the lower end's `tcp_sock`: a client's from `TCP_CONNECT_CB`, a server's from
    /// `PASSIVE_ESTABLISHED_CB`, 0 before and after its close.
    pub low_sock: u64,
    /// Address of the higher end's `tcp_sock`.
    pub high_sock: u64,
    /// The lower end's socket, as the kernel names it (`SO_COOKIE`), since it was set.
    pub low_cookie: u64,
    /// The same of the higher end.
    pub high_cookie: u64,
    /// Bytes redirected from the lower end.
    pub low_bytes: u64,
    /// Bytes redirected from the higher end.
    pub high_bytes: u64,
    /// When the lower end last began to send what might be redirected, or went over to TCP
    /// (CLOCK_MONOTONIC, to a tick); 0 if it never did.
    pub low_began: u64,
    /// The same of the higher end.
    pub high_began: u64,
    /// Against whose share it counts: [`CHARGED`] until the socket of that pod closes, then
    /// [`CHARGED_TO_SERVER`] while only the server's pod on this node has not closed; else 0.
    pub charged: u64,
}

/// What the program `judge_connections` has found out about a connection. It writes this, and
/// behind it the [`Connection`] as it was before.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judged {
    /// The connection.
    pub key: ConnectionKey,
    /// The decision of the policy that is in force.
    pub decision: Decision,
    /// 1 where it was judged just now; 0 where it had been marked with [`CONNECTION_CUT`] before.
    pub now: u32,
}

/// A record counts against the pod that opened it; one of a client that is elsewhere, or of the
/// proxy, against the server's.
pub const CHARGED: u64 = 1;
/// A record counts against its server's pod, because its client has closed.
pub const CHARGED_TO_SERVER: u64 = 2;

/// No byte of a direction is in TCP.
pub const HELD_NOT: u8 = 0;
/// Bytes of a direction are in TCP, or may be.
pub const HELD: u8 = 1;
/// No byte of a direction is redirected any more: its reader is joined no more.
pub const HELD_FOR_GOOD: u8 = 2;
/// As [`HELD`], and its reader is in `LAGGING`: redirected bytes may be before those of TCP.
pub const HELD_BEHIND_REDIRECTED: u8 = 3;

/// A reader that has redirected bytes before it and bytes of TCP behind those. The kernel tells
/// it of each once, and gives it the former alone: one that takes a short read to mean that there
/// is no more would sleep on the rest. The agent wakes it. Value of the map `LAGGING`, by the
/// address of the reader's `tcp_sock`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lagging {
    /// Its connection.
    pub key: ConnectionKey,
    /// The pod in whose network namespace it is; 0: the node's, where the proxy is.
    pub pod: PodId,
    /// The sequence number of the first byte of TCP. A reader that has read it has none before it.
    pub since: u32,
    /// 1 where it is the lower end, else 0.
    pub low: u32,
}

/// The client is the lower end.
pub const CONNECTION_CLIENT_LOW: u8 = 1;
/// The client's identity is proven: attested by this kernel, or verified by the proxy.
pub const CONNECTION_PROVEN: u8 = 1 << 1;
/// Both sockets may be joined.
pub const CONNECTION_ACCELERATE: u8 = 1 << 2;
/// The client's socket is the proxy's.
pub const CONNECTION_FROM_PROXY: u8 = 1 << 3;
/// The server's socket is the proxy's.
pub const CONNECTION_TO_PROXY: u8 = 1 << 4;
/// Both ends are established.
pub const CONNECTION_ESTABLISHED: u8 = 1 << 5;
/// It has been found forbidden, and is being cut.
pub const CONNECTION_CUT: u8 = 1 << 6;
/// Its client is elsewhere: the server's end made the record.
pub const CONNECTION_ACCEPTED: u8 = 1 << 7;

crate::pod!(ConnectionKey, SocketKey, Origin, ProvenSource, Connection, Judged, Lagging);
