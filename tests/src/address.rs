//! Who has which address. All clusters use the same ones: each lives in namespaces of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Addresses of a node, or of a host outside of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// On the network between the nodes.
    pub ipv4: Ipv4Addr,
    /// On the network between the nodes.
    pub ipv6: Ipv6Addr,
    /// Its number, from 1.
    number: u8,
}

/// Addresses of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddresses {
    /// From its node's pod CIDR.
    pub ipv4: Ipv4Addr,
    /// From its node's pod CIDR.
    pub ipv6: Ipv6Addr,
}

impl NodeAddresses {
    /// Prefix length of the network between the nodes.
    pub(crate) const PREFIX_V4: u8 = 16;
    /// Prefix length of the network between the nodes.
    pub(crate) const PREFIX_V6: u8 = 64;

    /// Of the node with this number (from 1).
    pub(crate) fn of_node(number: u8) -> Self {
        Self {
            ipv4: Ipv4Addr::new(172, 18, 0, number + 1),
            ipv6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, u16::from(number) + 1),
            number,
        }
    }

    /// Of the host outside with this number (from 1), on the network between the nodes.
    pub(crate) fn of_outside(number: u8) -> Self {
        Self {
            ipv4: Ipv4Addr::new(172, 18, 1, number),
            ipv6: Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 1, u16::from(number)),
            number,
        }
    }

    /// The address by which a host outside is known: one for documentation (RFC 5737, 3849).
    pub(crate) fn public(&self) -> PodAddresses {
        let number = self.number;
        PodAddresses {
            ipv4: Ipv4Addr::new(203, 0, 113, number),
            ipv6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, number.into()),
        }
    }

    /// The node's pod CIDRs.
    pub fn pod_cidrs(&self) -> [String; 2] {
        let number = self.number;
        [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number:x}::/64")]
    }

    /// Where pods of the node find it.
    pub(crate) fn gateway(&self) -> PodAddresses {
        self.pod(1)
    }

    /// Of the node's pod with this host number (2 to 254).
    pub(crate) fn pod(&self, host: u8) -> PodAddresses {
        PodAddresses {
            ipv4: Ipv4Addr::new(10, 244, self.number, host),
            ipv6: Ipv6Addr::new(0xfd00, 0x10, 0x244, self.number.into(), 0, 0, 0, host.into()),
        }
    }
}

impl PodAddresses {
    /// Of a service with this number (from 1).
    pub(crate) fn of_service(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        Self {
            ipv4: Ipv4Addr::new(10, 96, high, low),
            ipv6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, number),
        }
    }

    /// Both, IPv4 first.
    pub fn both(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }

    /// With a port, IPv4 first.
    pub fn sockets(&self, port: u16) -> [SocketAddr; 2] {
        self.both().map(|address| SocketAddr::new(address, port))
    }
}
