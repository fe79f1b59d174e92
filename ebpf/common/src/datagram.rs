use crate::{Address, Decision, PodId};

/// A flow of datagrams (UDP, ICMP, and every protocol but TCP) as one pod sees it. Key of the map
/// `DATAGRAMS` (hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DatagramKey {
    /// The pod's own address.
    pub local: Address,
    /// The other address.
    pub remote: Address,
    /// The pod.
    pub pod: PodId,
    /// The pod's port in host byte order; for an echo its identifier; otherwise 0.
    pub local_port: u16,
    /// The other port; for an echo the same identifier; otherwise 0.
    pub remote_port: u16,
    /// IP protocol number; ICMPv6 counts as ICMP.
    pub protocol: u8,
    /// For ICMP without an identifier its type, otherwise 0.
    pub kind: u8,
    /// Always 0.
    pub unused: u16,
}

/// Value of the map `DATAGRAMS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagram {
    /// When it was last used (`bpf_ktime_get_ns`), to a second.
    pub used: u64,
    /// What admitted it.
    pub decision: Decision,
    /// The generation of the policy that admitted it.
    pub generation: u32,
    /// Its number among the pod's flows of its direction.
    pub position: u32,
    /// The port that was judged, host byte order ([`crate::PortKey`]).
    pub port: u32,
    /// 1: the pod sent first; 0: it received first.
    pub outbound: u32,
}

/// Nanoseconds after which an unused flow is forgotten.
pub const DATAGRAM_LIFETIME: u64 = 180_000_000_000;

/// Which flow is to make room. Key of the map `DATAGRAM_RING` (hash), whose value is a
/// [`DatagramSlot`]. Every pod has two rings of `flows_per_pod` slots, so that what others send
/// to a pod never makes it forget its own flows.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DatagramSlotKey {
    /// The pod.
    pub pod: PodId,
    /// Number of the flow modulo `flows_per_pod`, shifted left by one; the lowest bit is
    /// [`Datagram::outbound`].
    pub slot: u32,
}

/// Value of the map `DATAGRAM_RING`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DatagramSlot {
    /// The flow.
    pub key: DatagramKey,
    /// [`Datagram::position`] of the flow when it took the slot.
    pub position: u32,
}

/// The first fragment of a packet that was let pass. Key of the map `FRAGMENTS` (hash): each pod
/// has [`FRAGMENT_SLOTS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    /// The pod that sends or receives, shifted left by one; the lowest bit is 1 for sending.
    pub pod: u32,
    /// The packet's identification modulo [`FRAGMENT_SLOTS`].
    pub slot: u32,
}

/// Value of the map `FRAGMENTS`. The fragments that follow pass where all of it is equal.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fragment {
    /// The packet's source.
    pub source: Address,
    /// The packet's destination.
    pub destination: Address,
    /// The packet's identification.
    pub id: u32,
    /// Generation of the policy under which its first fragment passed.
    pub generation: u32,
}

/// Packets in fragments that a pod may have under way in each direction.
pub const FRAGMENT_SLOTS: u32 = 64;

crate::pod!(DatagramKey, Datagram, DatagramSlotKey, DatagramSlot, FragmentKey, Fragment);
