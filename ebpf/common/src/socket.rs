use crate::{Decision, Endpoint, Origin, PodId};

/// What is known of a socket. Value of the socket storage `SOCKET_STATE`; it dies with the
/// socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketState {
    /// For a client: what it dialled and where that led. For an accepted socket: its client. For
    /// a socket of the proxy before it connects: the source that the proxy has proven.
    pub origin: Origin,
    /// The server's pod, if it is on this node.
    pub server: PodId,
    /// What admitted it.
    pub decision: Decision,
    /// The generation of the policy that admitted it.
    pub generation: u32,
    /// `SOCKET_*` bits.
    pub flags: u32,
    /// A [`crate::Path`].
    pub path: u32,
}

/// It has been connected by its process.
pub const SOCKET_CLIENT: u32 = 1;
/// It has been accepted by a listener.
pub const SOCKET_ACCEPTED: u32 = 1 << 1;
/// Packets of its connection pass while `generation` is the current one.
pub const SOCKET_ADMITTED: u32 = 1 << 2;
/// It belongs to the node's proxy.
pub const SOCKET_OF_PROXY: u32 = 1 << 3;
/// The proxy has said on whose behalf it will connect.
pub const SOCKET_HAS_SOURCE: u32 = 1 << 4;
/// `origin` may be read by the process ([`crate::SO_WEFT_ORIGIN`]).
pub const SOCKET_HAS_ORIGIN: u32 = 1 << 5;
/// The process is to see another peer than the packets have.
pub const SOCKET_SHOWS_PEER: u32 = 1 << 6;
/// Its connection has a record in `CONNECTIONS`.
pub const SOCKET_RECORDED: u32 = 1 << 7;
/// The client's identity is proven.
pub const SOCKET_PROVEN: u32 = 1 << 8;
/// Both ends may be joined.
pub const SOCKET_ACCELERATE: u32 = 1 << 9;
/// Its SYN goes to the node's proxy, which has not answered yet.
pub const SOCKET_AWAITS_PROXY: u32 = 1 << 10;

/// A service address that a socket has sent datagrams to, and the backend that they went to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translation {
    /// The service address.
    pub dialled: Endpoint,
    /// The backend; port 0 for an unused entry.
    pub backend: Endpoint,
    /// The set of backends from which it was chosen.
    pub backends: u32,
}

/// How many services an unconnected socket may talk with at once.
pub const TRANSLATIONS: usize = 8;

/// Value of the socket storage `SOCKET_SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translations {
    /// The latest, in no order.
    pub entries: [Translation; TRANSLATIONS],
    /// Where the next one goes.
    pub next: u32,
}

crate::pod!(SocketState, Translation, Translations);
