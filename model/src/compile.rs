//! The mesh, compiled for one node into the tables that the eBPF programs read.

mod bits;
mod blocks;
mod bridge;
mod classes;
mod compiler;
mod decide;
mod facts;
mod ids;
mod library;
mod local;
mod lookup;
mod mtls;
mod peers;
mod port_table;
mod services;
mod subject;
mod vocabulary;

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_common::{
    Address, AddressEntry, BackendKey, Decision, Endpoint, Pod, PodId, PolicyEntry, PolicyKey,
    PortKey, Service, ServiceKey,
};

pub use bridge::{InForce, bridge};
pub use compiler::Compiler;
pub use lookup::{ConnectionDecision, Lookup};

use crate::mesh::{Name, Origin};

/// The kernel tables of one node, as values. Ids in them (of pods, classes, subjects, port
/// tables, sets of backends, rules) are never used for a second meaning, so that tables can be
/// brought into the kernel entry by entry: see `Kernel::apply` in the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The node's pods, enrolled or not, by name.
    pub pods: BTreeMap<Name, LocalPod>,
    /// Map `ADDRESSES`: by address and prefix length (of 128 bits).
    pub addresses: BTreeMap<(u8, Address), AddressEntry>,
    /// Map `POLICY`.
    pub policy: BTreeMap<PolicyKeyOrd, PolicyEntry>,
    /// Map `PORTS`: by key and prefix length (of [`PortKey::BITS`]).
    pub ports: BTreeMap<(u8, PortKey), Decision>,
    /// Map `SERVICES`.
    pub services: BTreeMap<ServiceKeyOrd, Service>,
    /// Map `BACKENDS`.
    pub backends: BTreeMap<BackendKeyOrd, Endpoint>,
    /// What the rule ids in the tables stand for.
    pub rules: Arc<BTreeMap<u32, Origin>>,
}

/// A pod on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its id in the kernel; a pod that is made anew under its old name has another.
    pub id: PodId,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Its entry in the map `PODS`.
    pub entry: Pod,
}

/// Orders keys for diffs.
pub type PolicyKeyOrd = (u32, u32);
/// Orders keys for diffs.
pub type ServiceKeyOrd = (Address, u16, u8);
/// Orders keys for diffs.
pub type BackendKeyOrd = (u32, u32);

/// The kernel's key.
pub fn policy_key((subject, peer): PolicyKeyOrd) -> PolicyKey {
    PolicyKey { subject, peer }
}

/// The kernel's key.
pub fn service_key((address, port, protocol): ServiceKeyOrd) -> ServiceKey {
    ServiceKey { address, port, protocol, unused: 0 }
}

/// The kernel's key.
pub fn backend_key((backends, slot): BackendKeyOrd) -> BackendKey {
    BackendKey { backends, slot }
}
