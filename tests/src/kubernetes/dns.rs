//! CoreDNS, as a Deployment.

use std::time::Duration;

use anyhow::Result;

use super::cluster::KubernetesCluster;
use super::images::COREDNS_IMAGE;

/// Where pods ask for names.
pub(super) const ADDRESS: &str = "10.96.0.10";

/// What CoreDNS is told, and may do. It asks the API server at its own address, so that names can
/// be had before anything serves addresses of services.
const MANIFESTS: &str = include_str!("dns/coredns.yaml");

/// Installs it, and waits until it serves.
pub(super) fn install(cluster: &KubernetesCluster) -> Result<()> {
    let (host, port) = cluster.api_server();
    let manifests = MANIFESTS
        .replace("@IMAGE@", COREDNS_IMAGE)
        .replace("@ADDRESS@", ADDRESS)
        .replace("@API_SERVER_HOST@", &host.to_string())
        .replace("@API_SERVER_PORT@", &port.to_string());
    cluster.apply(&manifests)?;
    cluster.kubectl(["rollout", "status", "deployment/coredns", "--namespace", "kube-system"])?;
    cluster.await_pods("kube-system", Duration::from_secs(60))
}
