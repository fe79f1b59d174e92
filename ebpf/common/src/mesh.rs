use crate::Address;

/// What every program reads first. The only value of the map `CONFIG`, replaced as a whole.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Counts policy changes. What was admitted under an older generation is judged anew.
    pub generation: u32,
    /// `CONFIG_*` bits.
    pub flags: u32,
    /// The node's own IPv4 address, where pods reach its proxy; network byte order, 0 for none.
    pub node_v4: u32,
    /// Port of the proxy's outbound listener.
    pub outbound_port: u32,
    /// The node's own IPv6 address, `::` for none.
    pub node_v6: Address,
    /// Port of the proxy's tunnel listener (HBONE: 15008).
    pub inbound_port: u32,
    /// How many TCP connections a pod may hold.
    pub connections_per_pod: u32,
    /// How many flows without connection (UDP, ICMP) of a pod are remembered.
    pub flows_per_pod: u32,
    /// Bound of bytes that an accelerated reader may leave unread; 0 for three quarters of its
    /// receive buffer, which TCP enlarges as it sees need.
    pub acceleration_bound: u32,
    /// Inode of the cgroup at which the programs are attached (`kubepods`).
    pub root_cgroup: u64,
}

/// Set once the first complete policy is in the maps. Before that every pod is denied.
pub const CONFIG_READY: u32 = 1;
/// Sockets on both ends of a local hop are joined by `sk_msg`.
pub const CONFIG_ACCELERATE: u32 = 1 << 1;
/// The bound on unread bytes cannot be kept on this kernel, and the user insists all the same.
pub const CONFIG_UNBOUNDED: u32 = 1 << 2;
/// `sameNode: mtls`: same-node traffic takes the tunnel too.
pub const CONFIG_SAME_NODE_MTLS: u32 = 1 << 3;
/// Pods that the agent does not know yet may talk. Off unless the user says so.
pub const CONFIG_UNKNOWN_ALLOWED: u32 = 1 << 4;

/// Identifies a pod on this node; never reused, also not after a restart of the agent. 0 is none.
pub type PodId = u32;
/// What `CGROUPS` says of the mesh's own cgroups (agent and proxy, where they are pods).
pub const POD_OF_THE_MESH: PodId = u32::MAX;

/// A pod on this node. Map `PODS`, by [`PodId`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Key into `POLICY` for what reaches the pod. 0: nothing restricts it.
    pub ingress_subject: u32,
    /// Key into `POLICY` for what leaves the pod. 0: nothing restricts it.
    pub egress_subject: u32,
    /// `POD_*` bits.
    pub flags: u32,
    /// IPv4 address in network byte order, 0 for none.
    pub v4: u32,
    /// IPv6 address, `::` for none.
    pub v6: Address,
}

impl Pod {
    /// Whether it is in the mesh, with an address of its own.
    #[inline(always)]
    pub const fn is_enrolled(&self) -> bool {
        self.flags & (POD_ENROLLED | POD_HOST_NETWORK) == POD_ENROLLED
    }
}

/// The pod is in the mesh: policy applies to it and its traffic is carried.
pub const POD_ENROLLED: u32 = 1;
/// Its sockets may be accelerated (`weft.dev/accelerate` is not `"false"`).
pub const POD_ACCELERATE: u32 = 1 << 1;
/// It has the host's network, and so the node's identity.
pub const POD_HOST_NETWORK: u32 = 1 << 2;

/// What is known of a peer's address. Map `ADDRESSES`, an LPM trie on [`Address`] (IPv4 prefixes
/// are 96 bits longer).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AddressEntry {
    /// The class of peers it belongs to: all addresses of a class are alike to every policy.
    pub class: u32,
    /// `ADDRESS_*` bits.
    pub flags: u32,
    /// The pod, if it is on this node.
    pub pod: PodId,
    /// Table of `PORTS` whose denied ports take no tunnel (PeerAuthentication DISABLE);
    /// 0: none, `u32::MAX`: no port does.
    pub plain: u32,
}

/// A pod that is in the mesh.
pub const ADDRESS_MESHED: u32 = 1;
/// A pod on this node.
pub const ADDRESS_LOCAL: u32 = 1 << 1;
/// This node itself. Its processes may always reach its pods, as Kubernetes expects.
pub const ADDRESS_HOST: u32 = 1 << 2;
/// Another node.
pub const ADDRESS_REMOTE_NODE: u32 = 1 << 3;

crate::pod!(Config, Pod, AddressEntry);
