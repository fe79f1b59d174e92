//! The programs' judgement of a connection, over the copies of the tables that the agent keeps
//! of what is in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use weft_common::{
    Address, AddressEntry, Between, CONNECTION_PROVEN, Connection, Decision, NodeTables, Pod,
    PodId, PolicyEntry, PolicyKey, PortKey,
};

use super::tables::KernelTables;

const TCP: u8 = 6;

/// Judges connections by what is in the kernel.
pub(super) struct Judge<'a> {
    tables: &'a KernelTables,
    /// The prefix lengths that occur, longest first.
    address_prefixes: Vec<u8>,
    port_prefixes: Vec<u8>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(tables: &'a KernelTables) -> Self {
        Self {
            tables,
            address_prefixes: prefixes(tables.addresses.installed()),
            port_prefixes: prefixes(tables.ports.installed()),
        }
    }

    /// Judges both ends, as far as they are pods of the mesh on this node.
    pub(super) fn connection(&self, connection: &Connection) -> Decision {
        let Connection { origin, server, flags, .. } = connection;
        let between = Between {
            source_pod: origin.pod,
            source: &origin.source.address,
            destination: &origin.backend,
            destination_pod: *server,
            proven: flags & CONNECTION_PROVEN != 0,
            protocol: TCP,
        };
        between.judge(self)
    }
}

impl NodeTables for Judge<'_> {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        let entries = self.tables.addresses.installed();
        self.address_prefixes
            .iter()
            .find_map(|prefix| entries.get(&(*prefix, masked_address(address, *prefix))))
            .copied()
    }

    fn pod(&self, id: PodId) -> Option<&Pod> {
        self.tables.pods.installed().get(&id)
    }
}

impl weft_common::Tables for Judge<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        self.tables.policy.installed().get(&(key.subject, key.peer)).copied()
    }

    fn ports(&self, key: &PortKey) -> Option<Decision> {
        let entries = self.tables.ports.installed();
        self.port_prefixes
            .iter()
            .find_map(|prefix| entries.get(&(*prefix, masked_ports(key, *prefix))))
            .copied()
    }
}

fn prefixes<K: Ord, V>(entries: &BTreeMap<(u8, K), V>) -> Vec<u8> {
    let lengths: BTreeSet<u8> = entries.keys().map(|(prefix, _)| *prefix).collect();
    lengths.into_iter().rev().collect()
}

/// The address with all bits behind the prefix 0.
fn masked_address(address: &Address, prefix: u8) -> Address {
    let mut left = u32::from(prefix);
    Address(address.0.map(|word| {
        let bits = left.min(32);
        left -= bits;
        (u32::from_be(word) & mask(bits)).to_be()
    }))
}

/// The key with all bits behind the prefix 0. The table is always matched whole.
fn masked_ports(key: &PortKey, prefix: u8) -> PortKey {
    let bits = u32::from(prefix).saturating_sub(32);
    let protocol = u32::from(key.protocol) << 24 & mask(bits.min(8));
    let port = u32::from(u16::from_be_bytes(key.port)) << 16 & mask(bits.saturating_sub(8));
    PortKey {
        table: key.table,
        protocol: (protocol >> 24) as u8,
        port: ((port >> 16) as u16).to_be_bytes(),
        unused: 0,
    }
}

/// A word with its highest `bits` set.
fn mask(bits: u32) -> u32 {
    u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;

    #[test]
    fn masks_addresses_like_the_kernel() {
        let address = Address::from(IpAddr::from([10, 1, 2, 3]));
        assert_eq!(masked_address(&address, 128), address);
        assert_eq!(masked_address(&address, 96 + 16), Address::from(IpAddr::from([10, 1, 0, 0])));
        assert_eq!(masked_address(&address, 0), Address::UNSPECIFIED);
        let v6: Ipv6Addr = "fd00:1:2:3::4".parse().unwrap();
        let net: Ipv6Addr = "fd00:1::".parse().unwrap();
        assert_eq!(masked_address(&IpAddr::V6(v6).into(), 33), IpAddr::V6(net).into());
    }

    #[test]
    fn masks_ports_like_the_kernel() {
        let key = PortKey::new(7, TCP, 0x1234);
        assert_eq!(masked_ports(&key, 56), key);
        assert_eq!(masked_ports(&key, 48), PortKey::new(7, TCP, 0x1200));
        assert_eq!(masked_ports(&key, 40), PortKey::new(7, TCP, 0));
        assert_eq!(masked_ports(&key, 32), PortKey::new(7, 0, 0));
    }
}
