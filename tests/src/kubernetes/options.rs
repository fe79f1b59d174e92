use serde::{Deserialize, Serialize};

/// How pods are joined to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cni {
    /// A routed link for each pod.
    #[default]
    Ptp,
    /// A bridge on each node.
    Bridge,
}

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    pub(super) name: Option<String>,
    pub(super) nodes: Vec<String>,
    pub(super) outside: Vec<String>,
    pub(super) cni: Cni,
    pub(super) kube_proxy: bool,
    pub(super) dns: bool,
    pub(super) systemd: Vec<String>,
}

impl Default for KubernetesOptions {
    /// Nodes `node-a` and `node-b` with the `ptp` plugin and kube-proxy, without CoreDNS.
    fn default() -> Self {
        Self {
            name: None,
            nodes: ["node-a", "node-b"].map(str::to_owned).to_vec(),
            outside: Vec::new(),
            cni: Cni::default(),
            kube_proxy: true,
            dns: false,
            systemd: Vec::new(),
        }
    }
}

impl KubernetesOptions {
    /// Its name (it becomes `weft-<name>`); a random one if this is not called.
    pub fn name(self, name: &str) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// The nodes' names.
    pub fn nodes(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { nodes: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// Adds a host beyond the cluster; see [`crate::Builder::outside`].
    pub fn outside(mut self, name: impl Into<String>) -> Self {
        self.outside.push(name.into());
        self
    }

    /// How pods are joined to their node.
    pub fn cni(self, cni: Cni) -> Self {
        Self { cni, ..self }
    }

    /// Without kube-proxy, addresses of services lead nowhere, that of the API server included,
    /// unless a mesh serves them.
    pub fn without_kube_proxy(self) -> Self {
        Self { kube_proxy: false, ..self }
    }

    /// Nodes on which a systemd is the first process, and makes the cgroups of pods: kubelet and
    /// runtime have the driver `systemd` there, and ask it over D-Bus. The others have `cgroupfs`.
    pub fn systemd_on(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { systemd: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// Runs CoreDNS, and waits until it serves.
    pub fn dns(self) -> Self {
        Self { dns: true, ..self }
    }
}
