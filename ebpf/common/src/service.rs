use crate::{Address, Endpoint, PodId};

/// A service address. Key of the map `SERVICES` (hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ServiceKey {
    /// Cluster IP, or another address at which the service is reached.
    pub address: Address,
    /// Port in host byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub unused: u8,
}

/// Value of the map `SERVICES`. A set of backends is never changed: another set has another id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Service {
    /// Id of the set of backends.
    pub backends: u32,
    /// How many there are; their slots are `0..count`.
    pub count: u32,
    /// Seconds for which a client keeps its backend (`sessionAffinity: ClientIP`); 0: not at all.
    pub affinity: u32,
}

/// Key of the map `BACKENDS` (hash), whose value is an [`Endpoint`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackendKey {
    /// Id of the set.
    pub backends: u32,
    /// Which of the set.
    pub slot: u32,
}

/// Key of the map `AFFINITY` (LRU hash).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AffinityKey {
    /// The service address.
    pub service: ServiceKey,
    /// The client.
    pub client: PodId,
}

/// Value of the map `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// When it was last used (`bpf_ktime_get_ns`).
    pub used: u64,
    /// The backend.
    pub backend: Endpoint,
    /// Its slot when it was chosen, a hint to find it again.
    pub slot: u32,
}

crate::pod!(ServiceKey, Service, BackendKey, AffinityKey, Affinity);
