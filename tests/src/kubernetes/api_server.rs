use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::access;
use super::control_plane::{ADMINISTRATORS, ControlPlane, PORT};
use super::pki::{Pki, User};
use crate::cluster::Cluster;
use crate::state;

/// The host that it has where no cluster is given.
const HOST: &str = "control-plane";

/// etcd and an API server: objects are kept and watched, and nothing is made of them. Pods may
/// name accounts that do not exist. Dropping it stops both.
#[derive(Debug)]
pub struct ApiServer {
    control_plane: ControlPlane,
    kubeconfig: PathBuf,
    nodes_kubeconfig: PathBuf,
    /// Last, for it removes what the others run in.
    _own: Option<Cluster>,
}

impl ApiServer {
    /// On a host of its own, which goes with it.
    ///
    /// # Errors
    /// Kubernetes is not built yet (`cargo xtask kubernetes`), or something does not come up:
    /// what it logged is in the error.
    pub fn start() -> Result<Self> {
        let own = Cluster::builder().node(HOST).build()?;
        let started = Self::start_on(&own, HOST)?;
        Ok(Self { _own: Some(own), ..started })
    }

    /// On a host of a cluster, one for each cluster. To be dropped before the cluster is.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_on(cluster: &Cluster, host: &str) -> Result<Self> {
        let host = cluster.node(host)?;
        let outer = access::join(cluster.name(), host)?;
        let data = state::data_directory(cluster.name());
        std::fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        let directory = cluster.directory().join("pki");
        let control_plane = ControlPlane::new(host, &directory, &data).without_controllers();
        let pki = Pki::create(&directory)?;
        control_plane.prepare(&pki, outer)?;
        let administrator = User { name: "kubernetes-admin", group: Some(ADMINISTRATORS) };
        let kubeconfig =
            pki.kubeconfig("admin", &format!("https://{outer}:{PORT}"), &administrator)?;
        let nodes_kubeconfig =
            pki.kubeconfig("nodes-admin", &control_plane.address(), &administrator)?;
        control_plane.start()?;
        Ok(Self { control_plane, kubeconfig, nodes_kubeconfig, _own: None })
    }

    /// A kubeconfig of an administrator, to be used on this machine.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The same, to be used on the nodes of its cluster.
    pub fn nodes_kubeconfig(&self) -> &Path {
        &self.nodes_kubeconfig
    }

    /// Kills the API server, as `kill -9` does. What etcd has stays.
    pub fn kill(&self) {
        self.control_plane.stop_api_server(false);
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_again(&self) -> Result<()> {
        self.control_plane.start_api_server()
    }
}
