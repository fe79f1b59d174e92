//! Links, addresses and routes of a cluster.

use std::fmt::Write;

use anyhow::Result;

use crate::address::{NodeAddresses, PodAddresses};
use crate::namespace::{NetworkNamespace, ip_batch};
use crate::place::HostRecord;

/// Kernel parameters of every namespace, set before it has links that copy them. IPv6 addresses
/// are usable at once (no duplicate address detection), and no routers are asked for.
const PARAMETERS: &[(&str, &str)] = &[
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // The kernel's own default. The machine's value may be strict, which would hide whether the
    // mesh itself stops forged addresses.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// What a node sets besides: it routes for its pods.
const FORWARDING: &[(&str, &str)] = &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")];

/// Makes namespaces.
pub(crate) fn add_namespaces(namespaces: &[&NetworkNamespace]) -> Result<()> {
    let mut lines = String::new();
    for namespace in namespaces {
        writeln!(lines, "netns add {}", namespace.name())?;
    }
    ip_batch(&[], &lines)?;
    for namespace in namespaces {
        namespace.set_parameters(PARAMETERS)?;
    }
    Ok(())
}

/// Removes namespaces, and with them their links.
pub(crate) fn remove_namespaces(namespaces: &[NetworkNamespace]) -> Result<()> {
    let mut lines = String::new();
    for namespace in namespaces {
        writeln!(lines, "netns del {}", namespace.name())?;
    }
    ip_batch(&["-force"], &lines)
}

/// Joins the hosts by a bridge in a namespace of its own.
pub(crate) fn join_hosts(
    fabric: &NetworkNamespace,
    hosts: &[(&HostRecord, &NetworkNamespace)],
    mtu: u32,
) -> Result<()> {
    let mut lines = String::from("link set lo up\n");
    writeln!(lines, "link add fabric mtu {mtu} type bridge stp_state 0 mcast_snooping 0")?;
    writeln!(lines, "link set fabric up")?;
    for (index, (_, namespace)) in hosts.iter().enumerate() {
        let namespace = namespace.name();
        writeln!(
            lines,
            "link add host{index} mtu {mtu} type veth peer name eth0 netns {namespace} mtu {mtu}"
        )?;
        writeln!(lines, "link set host{index} master fabric up")?;
    }
    fabric.ip(&lines)?;
    for (record, namespace) in hosts {
        if !record.outside {
            namespace.set_parameters(FORWARDING)?;
        }
        let others = hosts.iter().filter(|(other, _)| other.name != record.name);
        namespace.ip(&host_lines(record, others.map(|(other, _)| *other))?)?;
    }
    Ok(())
}

fn host_lines<'a>(
    host: &HostRecord,
    others: impl Iterator<Item = &'a HostRecord>,
) -> Result<String> {
    let NodeAddresses { ipv4, ipv6, .. } = host.addresses;
    let (prefix4, prefix6) = (NodeAddresses::PREFIX_V4, NodeAddresses::PREFIX_V6);
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    writeln!(lines, "addr add {ipv4}/{prefix4} dev eth0")?;
    writeln!(lines, "addr add {ipv6}/{prefix6} dev eth0 nodad")?;
    if host.outside {
        let PodAddresses { ipv4, ipv6 } = host.addresses.public();
        writeln!(lines, "addr add {ipv4}/32 dev lo\naddr add {ipv6}/128 dev lo nodad")?;
    }
    let from = if host.outside { host.addresses.public() } else { PodAddresses { ipv4, ipv6 } };
    let PodAddresses { ipv4: source4, ipv6: source6 } = from;
    for other in others {
        let NodeAddresses { ipv4, ipv6, .. } = other.addresses;
        let [cidr4, cidr6] = if other.outside {
            let public = other.addresses.public();
            [format!("{}/32", public.ipv4), format!("{}/128", public.ipv6)]
        } else {
            other.addresses.pod_cidrs()
        };
        writeln!(lines, "route add {cidr4} via {ipv4} dev eth0 src {source4}")?;
        writeln!(lines, "route add {cidr6} via {ipv6} dev eth0 src {source6}")?;
    }
    Ok(lines)
}

/// Joins a pod to its node as the `ptp` CNI plugin does: a veth of its own, addresses without
/// neighbours, and every packet by way of the node.
pub(crate) fn join_pod(
    pod: &NetworkNamespace,
    addresses: PodAddresses,
    node: &NetworkNamespace,
    gateway: PodAddresses,
    link: &str,
    mtu: u32,
) -> Result<()> {
    let PodAddresses { ipv4, ipv6 } = addresses;
    let PodAddresses { ipv4: gateway4, ipv6: gateway6 } = gateway;
    let pod_name = pod.name();
    node.ip(&format!(
        "link add {link} mtu {mtu} type veth peer name eth0 netns {pod_name} mtu {mtu}\n\
         link set {link} up\n\
         addr add {gateway4}/32 dev {link}\n\
         addr add {gateway6}/128 dev {link} nodad\n\
         route add {ipv4}/32 dev {link} scope link src {gateway4}\n\
         route add {ipv6}/128 dev {link} src {gateway6}\n"
    ))?;
    pod.ip(&format!(
        "link set lo up\n\
         link set eth0 up\n\
         addr add {ipv4}/32 dev eth0\n\
         addr add {ipv6}/128 dev eth0 nodad\n\
         route add {gateway4}/32 dev eth0 scope link src {ipv4}\n\
         route add {gateway6}/128 dev eth0\n\
         route add default via {gateway4} dev eth0 src {ipv4}\n\
         route add default via {gateway6} dev eth0 src {ipv6}\n"
    ))
}

/// Takes a pod's link away.
pub(crate) fn part_pod(node: &NetworkNamespace, link: &str) -> Result<()> {
    node.ip(&format!("link del {link}\n"))
}

/// The node's end of a pod's link; names of links have at most 15 characters.
pub(crate) fn link_name(addresses: PodAddresses) -> String {
    let [.., host] = addresses.ipv4.octets();
    format!("pod{host}")
}
