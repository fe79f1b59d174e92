use std::collections::BTreeMap;

use weft_common::{Address, AddressEntry, Decision, Pod, PodId, PolicyEntry, PortKey};
use weft_model::compile::PolicyKeyOrd;

use super::Kernel;

/// The tables that decide, as they stand in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Installed<'a> {
    /// Map `ADDRESSES`: by address and prefix length (of 128 bits).
    pub addresses: &'a BTreeMap<(u8, Address), AddressEntry>,
    /// Map `POLICY`.
    pub policy: &'a BTreeMap<PolicyKeyOrd, PolicyEntry>,
    /// Map `PORTS`: by key and prefix length.
    pub ports: &'a BTreeMap<(u8, PortKey), Decision>,
    /// Map `PODS`.
    pub pods: &'a BTreeMap<PodId, Pod>,
}

impl Kernel {
    /// The tables that decide, as they stand in the kernel: those of an earlier agent until the
    /// first [`Kernel::apply`].
    pub fn installed(&self) -> Installed<'_> {
        Installed {
            addresses: self.tables.addresses.installed(),
            policy: self.tables.policy.installed(),
            ports: self.tables.ports.installed(),
            pods: self.tables.pods.installed(),
        }
    }
}
