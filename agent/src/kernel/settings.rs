//! What the agent is told about this node, and how it becomes the programs' `CONFIG`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use weft_common::{
    Address, CONFIG_ACCELERATE, CONFIG_READY, CONFIG_SAME_NODE_MTLS, CONFIG_UNBOUNDED,
    CONFIG_UNKNOWN_ALLOWED, Config,
};

use super::acceleration::{Acceleration, AccelerationMode, AccelerationState};

/// How to open the kernel.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where maps and links are pinned: a directory of this agent's own, on a BPF file system.
    pub pin_dir: PathBuf,
    /// The root of the pods' cgroups (`kubepods`).
    pub pods_cgroup: PathBuf,
    /// The cgroup of the node's proxy.
    pub proxy_cgroup: ProxyCgroup,
    /// Whether sockets are accelerated.
    pub acceleration: AccelerationMode,
    /// Sizes of maps that differ from the programs' own.
    pub map_sizes: MapSizes,
    /// Whether the programs log.
    pub bpf_log: bool,
    /// What the programs are told.
    pub settings: Settings,
}

impl Options {
    /// With defaults for all that can have one.
    pub fn new(pin_dir: impl Into<PathBuf>, pods_cgroup: impl Into<PathBuf>) -> Self {
        Self {
            pin_dir: pin_dir.into(),
            pods_cgroup: pods_cgroup.into(),
            proxy_cgroup: ProxyCgroup::Absent,
            acceleration: AccelerationMode::Auto,
            map_sizes: MapSizes::default(),
            bpf_log: false,
            settings: Settings::default(),
        }
    }
}

/// Where the node's proxy is among the cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ProxyCgroup {
    /// There is no proxy.
    #[default]
    Absent,
    /// In this one.
    At(PathBuf),
    /// Nobody knows before it runs (a container of the agent's own pod): its programs are loaded,
    /// and attached by [`super::Kernel::attach_proxy`].
    Awaited,
}

impl ProxyCgroup {
    /// The cgroup, where it is known.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::At(path) => Some(path),
            Self::Absent | Self::Awaited => None,
        }
    }
}

/// Numbers of entries (bytes for `FLOWS`) by map name. An adopted map that the programs write
/// keeps its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapSizes(BTreeMap<String, u32>);

impl MapSizes {
    /// Sets the size of a map.
    pub fn set(&mut self, map: impl Into<String>, size: u32) {
        self.0.insert(map.into(), size);
    }

    /// The size that was set for a map.
    pub fn get(&self, map: &str) -> Option<u32> {
        self.0.get(map).copied()
    }

    /// The sizes that were set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(name, size)| (name.as_str(), *size))
    }
}

/// What the programs are told about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The node's own IPv4 address, where pods reach its proxy.
    pub node_v4: Option<Ipv4Addr>,
    /// The node's own IPv6 address.
    pub node_v6: Option<Ipv6Addr>,
    /// Port of the proxy's outbound listener.
    pub outbound_port: u16,
    /// Port of the proxy's tunnel listener.
    pub inbound_port: u16,
    /// How many TCP connections a pod may hold.
    pub connections_per_pod: u32,
    /// How many flows without connection of a pod are remembered.
    pub flows_per_pod: u32,
    /// Bound of bytes that an accelerated reader may leave unread; 0: its receive buffer, at
    /// least 1 MiB.
    pub acceleration_bound: u32,
    /// Same-node traffic takes the tunnel too.
    pub same_node_mtls: bool,
    /// Pods that the agent does not know yet may talk.
    pub unknown_allowed: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_v4: None,
            node_v6: None,
            outbound_port: 15001,
            inbound_port: 15008,
            connections_per_pod: 16_384,
            flows_per_pod: 4096,
            acceleration_bound: 0,
            same_node_mtls: false,
            unknown_allowed: false,
        }
    }
}

impl Settings {
    /// The programs' configuration; generation and readiness are those of `before`.
    pub(super) fn config(
        &self,
        root_cgroup: u64,
        acceleration: &Acceleration,
        before: Config,
    ) -> Config {
        let mut flags = before.flags & CONFIG_READY;
        flags |= match acceleration.state {
            AccelerationState::On => CONFIG_ACCELERATE,
            AccelerationState::Off => 0,
            AccelerationState::Unbounded => CONFIG_ACCELERATE | CONFIG_UNBOUNDED,
        };
        if self.same_node_mtls {
            flags |= CONFIG_SAME_NODE_MTLS;
        }
        if self.unknown_allowed {
            flags |= CONFIG_UNKNOWN_ALLOWED;
        }
        Config {
            generation: before.generation,
            flags,
            node_v4: self.node_v4.map_or(0, |address| u32::from(address).to_be()),
            outbound_port: self.outbound_port.into(),
            node_v6: self
                .node_v6
                .map_or(Address::UNSPECIFIED, |v6| std::net::IpAddr::V6(v6).into()),
            inbound_port: self.inbound_port.into(),
            connections_per_pod: self.connections_per_pod,
            flows_per_pod: self.flows_per_pod,
            acceleration_bound: self.acceleration_bound,
            root_cgroup,
        }
    }
}
