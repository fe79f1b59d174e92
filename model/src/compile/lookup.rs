//! The tables, looked up as the eBPF programs do.

use std::collections::{BTreeSet, HashMap};

use weft_common::{
    Address, AddressEntry, Between, Decision, Endpoint, NodeTables, Pod, PodId, PolicyEntry,
    PolicyKey, PortKey, Reason,
};

use super::Tables;

/// Looks things up in tables as they stand in the kernel's maps.
#[derive(Debug)]
pub struct Lookup<'a> {
    tables: &'a Tables,
    pods: HashMap<PodId, Pod>,
    /// Lengths of prefixes of addresses, longest first.
    lengths: Vec<u8>,
}

/// What the kernel decides about a connection, as far as it can be decided on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionDecision {
    /// Of the client's policies; none where none restricts it, or it is no pod of this node.
    pub egress: Option<Decision>,
    /// Of the server's policies; none where none restricts it, or it is no pod of this node.
    pub ingress: Option<Decision>,
}

impl ConnectionDecision {
    /// A denial of the client's policies before what the server's say before what the client's
    /// say.
    pub fn decision(&self) -> Decision {
        let denied = self.egress.filter(|decision| !decision.allows());
        let decided = denied.or(self.ingress).or(self.egress);
        decided.unwrap_or(Decision::because(Reason::Unrestricted))
    }
}

impl<'a> Lookup<'a> {
    /// Over these tables.
    pub fn of(tables: &'a Tables) -> Self {
        let lengths: BTreeSet<u8> = tables.addresses.keys().map(|(length, _)| *length).collect();
        Self {
            tables,
            pods: tables.pods.values().map(|pod| (pod.id, pod.entry)).collect(),
            lengths: lengths.into_iter().rev().collect(),
        }
    }

    /// `ADDRESSES`: the longest prefix.
    pub fn address(&self, address: Address) -> Option<AddressEntry> {
        self.lengths.iter().find_map(|length| {
            self.tables.addresses.get(&(*length, prefix(address, *length))).copied()
        })
    }

    /// `PODS`.
    pub fn pod(&self, id: PodId) -> Option<Pod> {
        self.pods.get(&id).copied()
    }

    /// What the kernel decides about a connection: `client` is the pod whose socket opened it, 0
    /// if that is not on this node; `destination` is the backend. `protocol` is IANA's number,
    /// `proven` whether the client's identity is.
    pub fn connection(
        &self,
        client: PodId,
        source: Address,
        destination: Address,
        protocol: u8,
        port: u16,
        proven: bool,
    ) -> ConnectionDecision {
        let missing = AddressEntry::default();
        let to = self.address(destination).unwrap_or(missing);
        let from = self.address(source).unwrap_or(missing);
        let client_id = if client == 0 { from.pod } else { client };
        if client_id != 0 && (to.pod == client_id || destination.is_loopback()) {
            return ConnectionDecision { egress: None, ingress: None };
        }
        let between = Between {
            source_pod: client_id,
            source: &source,
            destination: &Endpoint { address: destination, port: port.into() },
            destination_pod: to.pod,
            proven,
            protocol,
        };
        ConnectionDecision {
            egress: between.judge_egress(self),
            ingress: between.judge_ingress(self),
        }
    }
}

impl NodeTables for Lookup<'_> {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        Lookup::address(self, *address)
    }

    fn pod(&self, id: PodId) -> Option<&Pod> {
        self.pods.get(&id)
    }
}

impl weft_common::Tables for Lookup<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.tables.policy.get(&(key.subject, key.peer)).copied()
    }

    fn ports(&self, key: &PortKey) -> Option<Decision> {
        let port = u16::from_be_bytes(key.port);
        let of_port = (0..=16).rev().map(|length: u32| {
            let mask = u16::MAX.checked_shl(16 - length).unwrap_or(0);
            (40 + length as u8, PortKey::new(key.table, key.protocol, port & mask))
        });
        of_port
            .chain([(32, PortKey::new(key.table, 0, 0))])
            .find_map(|entry| self.tables.ports.get(&entry).copied())
    }
}

/// The first `length` bits of an address.
pub(super) fn prefix(address: Address, length: u8) -> Address {
    let mut left = u32::from(length);
    Address(address.0.map(|word| {
        let bits = left.min(32);
        left -= bits;
        word & u32::MAX.checked_shl(32 - bits).unwrap_or(0).to_be()
    }))
}
