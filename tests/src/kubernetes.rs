//! A real Kubernetes on one Linux machine: etcd, the control plane, and nodes with containerd,
//! a kubelet and CNI plugins, each Kubernetes' own program.
//!
//! A node is what a node of [`crate::Cluster`] is (a network namespace and a branch of the
//! cgroups, joined to the others by a bridge) with a mount, a cgroup and a host name namespace
//! besides, so that its `/run`, `/var/lib`, `/var/log`, `/sys/fs/cgroup` and `/sys/fs/bpf` are its
//! own, as on a machine of its own. Everything goes when the [`KubernetesCluster`] is dropped,
//! also while a panic unwinds; [`crate::Cluster::remove`] removes what a crash left, and
//! [`crate::Cluster::list`] lists both kinds.
//!
//! ```no_run
//! use weft_tests::{KubernetesCluster, KubernetesOptions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = KubernetesCluster::start(&KubernetesOptions::default())?;
//! cluster.apply("apiVersion: v1\nkind: Namespace\nmetadata: { name: shop }\n")?;
//! println!("{}", cluster.kubectl(["get", "nodes", "-o", "wide"])?);
//! cluster.import_image("target/weft-image.tar".as_ref())?;
//! cluster.install_weft("weft.dev/weft:0.1.0", &["log.level=debug"])?;
//! println!("kubectl --kubeconfig {}", cluster.kubeconfig().display());
//! # Ok(())
//! # }
//! ```
//!
//! [`ApiServer`] is etcd and an API server without nodes, for what needs objects only.
//!
//! # Images
//! There is no registry: pods name an image that was imported, and `imagePullPolicy` must not be
//! `Always`. Every node has [`WORKLOAD_IMAGE`]. [`KubernetesCluster::import_image`] adds others,
//! such as [`weft_image`].
//!
//! # Where cgroup v2 has no controllers
//! Beside the controllers of cgroup v1 a kubelet cannot set limits. Then it is told not to, and
//! `runc-without-controllers`, which stands before runc, puts containers where a kubelet does, without
//! limits: itself, or with the driver `systemd` ([`KubernetesOptions::systemd_on`]) by runc's request
//! to a systemd. Where cgroup v2 has its controllers, neither is so.

mod access;
#[cfg(feature = "client")]
mod api_cluster;
mod api_server;
mod cluster;
mod control_plane;
mod dns;
mod images;
mod node;
#[cfg(feature = "client")]
mod objects;
mod options;
mod pki;
mod tools;
mod weft;

#[cfg(feature = "client")]
pub use api_cluster::ApiCluster;
pub use api_server::ApiServer;
pub use cluster::KubernetesCluster;
pub use images::{WORKLOAD_IMAGE, weft_image};
pub use node::KubernetesNode;
#[cfg(feature = "client")]
pub use objects::Objects;
pub use options::{Cni, KubernetesOptions};
pub use tools::{GO_MODULES, GoModule, kubernetes_program};
pub use weft::WEFT_NAMESPACE;
