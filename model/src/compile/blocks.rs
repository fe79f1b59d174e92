//! Blocks of addresses, in the one space of 128 bits that the kernel's tables have.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use weft_common::Address;

/// A CIDR. IPv4 blocks lie in `::ffff:0:0/96`; a block of IPv6 that is wider than that (`::/0`)
/// does not contain them all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Block {
    pub(super) v4: bool,
    /// Of 128 bits.
    pub(super) length: u8,
    network: u128,
}

impl Block {
    pub(super) const ALL_V4: Self = Self { v4: true, length: 96, network: 0xffff_0000_0000 };
    pub(super) const ALL_V6: Self = Self { v4: false, length: 0, network: 0 };

    pub(super) fn address(&self) -> Address {
        IpAddr::V6(Ipv6Addr::from_bits(self.network)).into()
    }

    /// The address, if it is of one alone.
    pub(super) fn single(&self) -> Option<IpAddr> {
        let address = IpAddr::V6(Ipv6Addr::from_bits(self.network));
        (self.length == 128).then_some(address.to_canonical())
    }
}

impl From<&IpNet> for Block {
    fn from(net: &IpNet) -> Self {
        let (address, length) = match net {
            IpNet::V4(v4) => (v4.network().to_ipv6_mapped(), v4.prefix_len() + 96),
            IpNet::V6(v6) => (v6.network(), v6.prefix_len()),
        };
        let v4 = length >= 96 && address.to_ipv4_mapped().is_some();
        Self { v4, length, network: masked(address.to_bits(), length) }
    }
}

/// Finds the blocks that contain an address.
#[derive(Debug, Default)]
pub(super) struct BlockSet {
    v4: BTreeMap<u8, HashSet<u128>>,
    v6: BTreeMap<u8, HashSet<u128>>,
}

impl BlockSet {
    pub(super) fn of<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> Self {
        let mut set = Self::default();
        for block in blocks {
            let family = if block.v4 { &mut set.v4 } else { &mut set.v6 };
            family.entry(block.length).or_default().insert(block.network);
        }
        set
    }

    /// Those that contain an address, in order.
    pub(super) fn containing(&self, address: IpAddr) -> Vec<Block> {
        let (v4, bits) = match address.to_canonical() {
            IpAddr::V4(v4) => (true, v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => (false, v6.to_bits()),
        };
        self.find(v4, bits, 128)
    }

    /// Those that contain a whole block, itself among them, in order.
    pub(super) fn around(&self, block: &Block) -> Vec<Block> {
        self.find(block.v4, block.network, block.length)
    }

    fn find(&self, v4: bool, bits: u128, longest: u8) -> Vec<Block> {
        let family = if v4 { &self.v4 } else { &self.v6 };
        family
            .range(..=longest)
            .filter_map(|(length, networks)| {
                let network = masked(bits, *length);
                networks.contains(&network).then_some(Block { v4, length: *length, network })
            })
            .collect()
    }
}

/// Blocks, in order.
pub(super) type Blocks = BTreeSet<Block>;

fn masked(bits: u128, length: u8) -> u128 {
    match u32::from(length) {
        0 => 0,
        length => bits & (u128::MAX << (128 - length.min(128))),
    }
}
