use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::address::PodAddresses;
use crate::cgroup::Qos;
use crate::place::Place;
use crate::process::Process;

/// What a pod is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) service_account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) ports: Vec<ContainerPort>,
    pub(crate) qos: Qos,
    pub(crate) host_network: bool,
    pub(crate) uid: Option<String>,
    pub(crate) host_number: Option<u8>,
    pub(crate) unlisted: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ContainerPort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: u16,
}

impl PodSpec {
    /// A pod on a node, with service account `default`.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        node: impl Into<String>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            node: node.into(),
            service_account: "default".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            ports: Vec::new(),
            qos: Qos::default(),
            host_network: false,
            uid: None,
            host_number: None,
            unlisted: false,
        }
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Names its service account.
    pub fn service_account(mut self, name: impl Into<String>) -> Self {
        self.service_account = name.into();
        self
    }

    /// Names a TCP port of its container.
    pub fn port(self, name: impl Into<String>, port: u16) -> Self {
        self.port_of("TCP", name, port)
    }

    /// Names a port of its container, of `TCP`, `UDP` or `SCTP`.
    pub fn port_of(mut self, protocol: &str, name: impl Into<String>, port: u16) -> Self {
        self.ports.push(ContainerPort { name: name.into(), protocol: protocol.into(), port });
        self
    }

    /// Its class, which says where its cgroup is.
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// It has the node's network.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Its uid; a random one if this is not called.
    pub fn uid(mut self, uid: impl Into<String>) -> Self {
        self.uid = Some(uid.into());
        self
    }

    /// The last number of its addresses (2 to 254), to give a pod the address of another that
    /// has gone; the next free one if this is not called.
    pub fn host_number(mut self, number: u8) -> Self {
        self.host_number = Some(number);
        self
    }

    /// It is kept out of the manifests: it runs, and the mesh has not heard of it yet.
    pub fn unlisted(mut self) -> Self {
        self.unlisted = true;
        self
    }

    /// Namespace and name, as in [`crate::Cluster::pod`].
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A pod: a [`Place`] with addresses, in which a process of its own holds it open.
#[derive(Debug)]
pub struct Pod {
    pub(crate) record: PodRecord,
    pub(crate) place: Place,
    pub(crate) pod_cgroup: PathBuf,
    /// What runs in the sandbox container, as in Kubernetes: it keeps the pod's cgroup and
    /// namespace in use while no other process does. None in a cluster that was only loaded.
    pub(crate) pause: Option<Process>,
}

/// What is written down of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) spec: PodSpec,
    pub(crate) uid: String,
    pub(crate) addresses: PodAddresses,
    /// Ids of the sandbox and of the container.
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

impl Pod {
    /// Namespace and name.
    pub fn key(&self) -> String {
        self.record.spec.key()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.record.uid
    }

    /// Its node's name.
    pub fn node(&self) -> &str {
        &self.record.spec.node
    }

    /// Its addresses.
    pub fn addresses(&self) -> PodAddresses {
        self.record.addresses
    }

    /// Its IPv4 address with a port.
    pub fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.record.addresses.ipv4.into(), port)
    }

    /// Its IPv6 address with a port.
    pub fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.record.addresses.ipv6.into(), port)
    }

    /// `http://<its IPv4 address>:<port>/`
    pub fn url(&self, port: u16) -> String {
        format!("http://{}/", self.v4(port))
    }

    /// The cgroup of the whole pod, above those of its containers.
    pub fn pod_cgroup(&self) -> &Path {
        &self.pod_cgroup
    }
}

impl std::ops::Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
