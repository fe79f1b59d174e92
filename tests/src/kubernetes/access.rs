//! How the machine reaches the API server: a link of its own into the control plane's namespace.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::namespace::ip_batch;
use crate::place::Host;
use crate::state;

/// Addresses for tests between networks (RFC 2544); each link takes four.
const RANGE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const LINKS: u32 = 1 << 15;

/// Makes the link, which goes with the namespace. Returns the control plane's address on it.
pub(super) fn join(cluster: &str, control_plane: &Host) -> Result<Ipv4Addr> {
    // Two clusters must not take the same addresses.
    let _turn = state::take_turn()?;
    let taken = taken()?;
    let mut networks = (0..LINKS).map(|number| u32::from(RANGE) + 4 * number);
    let free = networks.find(|network| !taken.iter().any(|taken| taken & !3 == *network));
    let network = free.context("no addresses are left in 198.18.0.0/15")?;
    let (machine, inner) = (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2));
    let link = link_name(cluster);
    let namespace = control_plane.namespace();
    let mut lines = String::new();
    writeln!(lines, "link add {link} type veth peer name machine netns {}", namespace.name())?;
    writeln!(lines, "addr add {machine}/30 dev {link}\nlink set {link} up")?;
    ip_batch(&[], &lines)?;
    namespace.ip(&format!("addr add {inner}/30 dev machine\nlink set machine up\n"))?;
    Ok(inner)
}

/// The link's end on the machine; names of links have at most 15 characters.
fn link_name(cluster: &str) -> String {
    let digest = Sha256::digest(cluster);
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("weft-{short}")
}

/// IPv4 addresses that the machine has.
fn taken() -> Result<Vec<u32>> {
    let output = Command::new("ip").args(["-json", "-4", "address"]).output();
    let output = output.context("cannot run ip: install iproute2")?;
    ensure!(output.status.success(), "ip -json address failed");
    let links: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let addresses = links.iter().filter_map(|link| link["addr_info"].as_array()).flatten();
    let addresses = addresses.filter_map(|address| address["local"].as_str()?.parse().ok());
    Ok(addresses.map(|address: Ipv4Addr| u32::from(address)).collect())
}
