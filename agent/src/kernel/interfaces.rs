//! The host's side of a pod's network interfaces.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::netlink::{Netlink, attributes, push_attribute, u32_at};

/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `RTM_GETLINK`
const GET_LINK: u16 = 18;
/// `RTM_GETNSID`
const GET_NAMESPACE_ID: u16 = 90;
/// `IFLA_LINK`
const LINK: u16 = 5;
/// `IFLA_LINK_NETNSID`
const LINK_NAMESPACE_ID: u16 = 37;
/// `NETNSA_NSID`
const NAMESPACE_ID: u16 = 1;
/// `NETNSA_FD`
const NAMESPACE_DESCRIPTOR: u16 = 3;
/// `IFF_LOOPBACK`
const LOOPBACK: u32 = 8;
/// The sizes of `struct ifinfomsg` and of `struct rtgenmsg` (padded).
const INTERFACE_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;

/// An interface, as much of it as tells pairs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interface {
    index: u32,
    loopback: bool,
    /// The index of the other end (veth), in its own namespace.
    link: Option<u32>,
    /// The id of the other end's namespace, as this one numbers them.
    link_namespace: Option<i32>,
}

/// The interfaces of the caller's namespace that lead into `namespace`: for each of its veth
/// interfaces the other end, where that is here.
///
/// Index numbers repeat from namespace to namespace, so both ends have to name each other.
pub(super) fn leading_into(namespace: &OwnedFd) -> io::Result<Vec<u32>> {
    let inside: Vec<Interface> = super::namespace::inside(namespace, || {
        list(&mut Netlink::route()?)
            .map(|all| all.into_iter().filter(|one| !one.loopback).collect())
    })?;
    if inside.is_empty() {
        return Ok(Vec::new());
    }
    let mut here = Netlink::route()?;
    // The kernel gives a namespace its number when something first refers to it: after the list.
    let outside = list(&mut here)?;
    let Some(number) = namespace_number(&mut here, namespace)? else {
        return Ok(Vec::new());
    };
    Ok(outside
        .iter()
        .filter(|host| host.link_namespace == Some(number))
        .filter(|host| {
            inside.iter().any(|pod| {
                host.link == Some(pod.index)
                    && pod.link == Some(host.index)
                    && pod.link_namespace.is_some()
            })
        })
        .map(|host| host.index)
        .collect())
}

fn list(netlink: &mut Netlink) -> io::Result<Vec<Interface>> {
    let mut found = Vec::new();
    netlink.dump(GET_LINK, &[0; INTERFACE_HEADER], |kind, body| {
        if kind == NEW_LINK {
            found.extend(parse(body));
        }
    })?;
    Ok(found)
}

fn parse(body: &[u8]) -> Option<Interface> {
    let mut interface = Interface {
        index: u32_at(body, 4)?,
        loopback: u32_at(body, 8)? & LOOPBACK != 0,
        link: None,
        link_namespace: None,
    };
    for (kind, value) in attributes(body.get(INTERFACE_HEADER..)?) {
        match kind {
            LINK => interface.link = u32_at(value, 0),
            LINK_NAMESPACE_ID => interface.link_namespace = u32_at(value, 0).map(|id| id as i32),
            _ => {}
        }
    }
    Some(interface)
}

/// The number of a namespace in the caller's own; `None` if it has none.
fn namespace_number(netlink: &mut Netlink, namespace: &OwnedFd) -> io::Result<Option<i32>> {
    let mut body = vec![0; GENERIC_HEADER];
    push_attribute(&mut body, NAMESPACE_DESCRIPTOR, &namespace.as_raw_fd().to_ne_bytes());
    let (_, answer) = netlink.get(GET_NAMESPACE_ID, &body)?;
    Ok(attributes(answer.get(GENERIC_HEADER..).unwrap_or_default())
        .find(|(kind, _)| *kind == NAMESPACE_ID)
        .and_then(|(_, value)| u32_at(value, 0))
        .map(|id| id as i32)
        .filter(|id| *id >= 0))
}
