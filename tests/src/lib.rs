//! The test cluster: nodes and pods made of network namespaces and cgroups on one Linux machine.
//!
//! A node is a network namespace with its own branch of cgroup v2, laid out as a kubelet does. A
//! pod is a network namespace, a cgroup below its node's, an IPv4 and an IPv6 address, and real
//! processes. Nodes are joined by veth through a bridge and routed, as hosts would be. Several
//! clusters can exist at once; none touches the machine's own network namespace. The demo, the
//! end-to-end tests and the benchmarks share this library. [`kubernetes`] puts a real Kubernetes
//! on such nodes.
//!
//! ```no_run
//! use weft_tests::{Cluster, PodSpec};
//!
//! # fn main() -> anyhow::Result<()> {
//! let cluster = Cluster::builder()
//!     .node("node-a")
//!     .node("node-b")
//!     .pod(PodSpec::new("shop", "cart", "node-a").label("app", "cart"))
//!     .pod(PodSpec::new("shop", "stock", "node-b"))
//!     .build()?;
//! let stock = cluster.pod("shop/stock")?;
//! let server = stock.spawn(["nginx", "-g", "daemon off;"])?;
//! stock.await_listening(80)?;
//! let answer = cluster.pod("shop/cart")?.exec(["curl", "-s", &stock.url(80)])?;
//! assert!(answer.status.success());
//! # drop(server);
//! # Ok(())
//! # }
//! ```

mod address;
mod builder;
mod cgroup;
mod cluster;
mod enter;
pub mod image;
pub mod kubernetes;
mod manifest;
mod mesh;
mod namespace;
mod network;
mod place;
mod pod;
mod process;
mod state;
mod traces;
mod wait;

pub use address::{NodeAddresses, PodAddresses};
pub use builder::Builder;
pub use cgroup::{CgroupDriver, Qos};
pub use cluster::Cluster;
pub use kubernetes::{ApiServer, Cni, KubernetesCluster, KubernetesNode, KubernetesOptions};
pub use manifest::{NamespaceSpec, ServicePort, ServiceSpec};
pub use mesh::{Mesh, MeshNode, MeshOptions, binary};
pub use namespace::NetworkNamespace;
pub use place::{Host, Place};
pub use pod::{Pod, PodSpec};
pub use process::{Output, Process, Run};
pub use state::ClusterSummary;
pub use traces::Traces;
#[cfg(feature = "client")]
pub use wait::eventually_async;
pub use wait::{eventually, eventually_within};

/// Whether tests that need root must be skipped; says so once per call.
///
/// Making namespaces and cgroups takes root. A test starts with
/// `if weft_tests::skipped_without_root() { return }`.
pub fn skipped_without_root() -> bool {
    let skipped = !rustix::process::geteuid().is_root();
    if skipped {
        eprintln!("skipped: making network namespaces and cgroups needs root");
    }
    skipped
}
