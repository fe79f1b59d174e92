use std::fs;

use anyhow::{Context, Result, ensure};

use crate::address::NodeAddresses;
use crate::cgroup::CgroupDriver;
use crate::cluster::Cluster;
use crate::manifest::{NamespaceSpec, ServiceSpec};
use crate::place::HostRecord;
use crate::pod::PodSpec;
use crate::state::{Directory, State};

/// Ethernet's.
const DEFAULT_MTU: u32 = 1500;
/// Nodes have one number in the third byte of their pods' addresses.
const NODES: usize = 200;

/// What a cluster is to be; see [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: Option<String>,
    nodes: Vec<String>,
    outside: Vec<String>,
    pods: Vec<PodSpec>,
    namespaces: Vec<NamespaceSpec>,
    services: Vec<ServiceSpec>,
    driver: CgroupDriver,
    mtu: u32,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            name: None,
            nodes: Vec::new(),
            outside: Vec::new(),
            pods: Vec::new(),
            namespaces: Vec::new(),
            services: Vec::new(),
            driver: CgroupDriver::default(),
            mtu: DEFAULT_MTU,
        }
    }

    /// Its name (it becomes `weft-<name>`); a random one if this is not called.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a node.
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.nodes.push(name.into());
        self
    }

    /// Adds a host that is no node of the cluster: it has an address of its own
    /// ([`crate::Host::public_addresses`]), which pods reach by way of their nodes.
    pub fn outside(mut self, name: impl Into<String>) -> Self {
        self.outside.push(name.into());
        self
    }

    /// Adds a pod.
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds pods.
    pub fn pods(mut self, pods: impl IntoIterator<Item = PodSpec>) -> Self {
        self.pods.extend(pods);
        self
    }

    /// Declares a namespace; those of pods are there anyway, and in the mesh.
    pub fn namespace(mut self, namespace: NamespaceSpec) -> Self {
        self.namespaces.push(namespace);
        self
    }

    /// Adds a service.
    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    /// How cgroups are named.
    pub fn cgroup_driver(mut self, driver: CgroupDriver) -> Self {
        self.driver = driver;
        self
    }

    /// The largest packet on every link.
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    /// Makes it. Clusters that died without cleaning up are removed on the way.
    pub fn build(self) -> Result<Cluster> {
        ensure!(self.nodes.len() <= NODES, "a cluster has at most {NODES} nodes");
        if let Err(error) = Cluster::remove_stale() {
            tracing::warn!("cannot remove what a cluster left behind: {error:#}");
        }
        let name = match &self.name {
            Some(name) => format!("weft-{name}"),
            None => format!("weft-{:.8}", random_uuid()?),
        };
        let directory = Directory::of(&name);
        let lock = directory.create()?;
        let state = State {
            kept: false,
            mtu: self.mtu,
            driver: self.driver,
            hosts: self.hosts(),
            namespaces: self.namespaces,
            ..State::default()
        };
        directory.write(&state)?;
        // From here on the cluster removes itself when it is dropped, also by an error below.
        let cluster = Cluster::new(name, directory, state, Some(lock))?;
        cluster.create_hosts()?;
        cluster.add_services(self.services)?;
        cluster.add_pods(self.pods)?;
        Ok(cluster)
    }

    fn hosts(&self) -> Vec<HostRecord> {
        let nodes = self.nodes.iter().zip(1..).map(|(name, number)| HostRecord {
            name: name.clone(),
            addresses: NodeAddresses::of_node(number),
            outside: false,
        });
        let outside = self.outside.iter().zip(1..).map(|(name, number)| HostRecord {
            name: name.clone(),
            addresses: NodeAddresses::of_outside(number),
            outside: true,
        });
        nodes.chain(outside).collect()
    }
}

/// A random UUID, as Kubernetes gives to objects.
pub(crate) fn random_uuid() -> Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context("the kernel gives no random UUID")?;
    Ok(uuid.trim().to_owned())
}
