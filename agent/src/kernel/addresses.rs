//! The addresses of the node's interfaces.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use tokio::io::unix::AsyncFd;

use super::netlink::{Netlink, Notifications, attributes};
use super::{KernelError, system};

/// `RTM_NEWADDR`
const NEW_ADDRESS: u16 = 20;
/// `RTM_GETADDR`
const GET_ADDRESS: u16 = 22;
/// `IFA_ADDRESS`: of a point-to-point link, the other end's.
const ADDRESS: u16 = 1;
/// `IFA_LOCAL`: its own, if it is not the same.
const LOCAL: u16 = 2;
/// The size of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`
const CHANGES: u32 = 0x10 | 0x100;

/// The addresses of all interfaces of the network namespace in which it was made. A pod is reached
/// from its link's address, which no Node names.
#[derive(Debug)]
pub struct NodeAddresses {
    netlink: Netlink,
    changes: AsyncFd<Notifications>,
}

impl NodeAddresses {
    /// Begins to follow them; to be called inside a tokio runtime.
    ///
    /// # Errors
    /// If the kernel refuses a netlink socket.
    pub fn follow() -> Result<Self, KernelError> {
        let failed = |source| KernelError::new("cannot follow the node's addresses", source);
        let changes = Notifications::route(CHANGES).and_then(system::wait_for).map_err(failed)?;
        Ok(Self { netlink: Netlink::route().map_err(failed)?, changes })
    }

    /// What the node's addresses are now, without those of loopback and of single links
    /// (`fe80::/10`).
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn read(&mut self) -> Result<BTreeSet<IpAddr>, KernelError> {
        read(&mut self.netlink)
            .map_err(|source| KernelError::new("cannot read the node's addresses", source))
    }

    /// Waits until some may have changed.
    ///
    /// # Errors
    /// If the socket fails; nothing will be told any more.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.changes.readable().await?;
            if let Ok(taken) = ready.try_io(|changes| changes.get_ref().take()) {
                return taken;
            }
        }
    }
}

/// Those of all interfaces of the calling thread's network namespace.
pub(super) fn of_this_namespace() -> io::Result<BTreeSet<IpAddr>> {
    read(&mut Netlink::route()?)
}

fn read(netlink: &mut Netlink) -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    netlink.dump(GET_ADDRESS, &[0; ADDRESS_HEADER], |kind, body| {
        if kind == NEW_ADDRESS {
            found.extend(parse(body).filter(is_of_the_node));
        }
    })?;
    Ok(found)
}

fn parse(body: &[u8]) -> Option<IpAddr> {
    let (mut address, mut local) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_HEADER..)?) {
        match kind {
            ADDRESS => address = of_bytes(value),
            LOCAL => local = of_bytes(value),
            _ => {}
        }
    }
    local.or(address)
}

fn of_bytes(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn is_of_the_node(address: &IpAddr) -> bool {
    let of_a_link = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    !(of_a_link || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; ADDRESS_HEADER];
        for (kind, value) in attributes {
            super::super::netlink::push_attribute(&mut body, *kind, value);
        }
        body
    }

    #[test]
    fn of_a_point_to_point_link_the_own_end_is_taken() {
        let own = message(&[(ADDRESS, &[10, 0, 0, 2]), (LOCAL, &[10, 0, 0, 1])]);
        assert_eq!(parse(&own), Some([10, 0, 0, 1].into()));
        let v6 = message(&[(ADDRESS, &[0xfd; 16])]);
        assert_eq!(parse(&v6), Some([0xfd; 16].into()));
        assert_eq!(parse(&message(&[(ADDRESS, &[1, 2, 3])])), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn loopback_and_links_are_left_out() {
        for left_out in ["127.0.0.1", "::1", "fe80::1", "::", "ff02::1"] {
            assert!(!is_of_the_node(&left_out.parse().unwrap()), "{left_out}");
        }
        for kept in ["169.254.1.1", "10.0.0.1", "fd00::1"] {
            assert!(is_of_the_node(&kept.parse().unwrap()), "{kept}");
        }
    }

    #[tokio::test]
    async fn reads_those_of_this_namespace() {
        let mut addresses = NodeAddresses::follow().unwrap();
        assert!(addresses.read().unwrap().iter().all(is_of_the_node));
    }
}
