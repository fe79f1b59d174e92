use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::json;

use super::api_server::ApiServer;
use super::objects::Objects;
use crate::cluster::Cluster;
use crate::mesh::{MeshOptions, binary};
use crate::pod::{Pod, PodSpec};
use crate::process::Process;
use crate::wait::eventually_async;

/// The host of the API server and of the authority.
const CONTROL_PLANE: &str = "control-plane";
/// Weft's namespace.
const SYSTEM: &str = "weft-system";
/// The authority's port, Service and audience, as in the chart.
const CA_PORT: u16 = 15012;
const CA: &str = "weft-ca";
const AGENT: &str = "weft-agent";
const TRUST_BUNDLE: &str = "weft-trust-bundle";
const CA_STARTS_WITHIN: Duration = Duration::from_secs(60);

/// A test cluster whose objects are in an API server: agents take their manifests from there.
/// There is no kubelet; pods are run as those of a [`Cluster`] are.
pub struct ApiCluster {
    /// Its objects.
    pub objects: Objects,
    /// Its API server.
    pub api: ApiServer,
    /// Last, for it removes what the others run in.
    pub cluster: Cluster,
}

impl ApiCluster {
    /// With these nodes.
    ///
    /// # Errors
    /// Kubernetes is not built yet (`cargo xtask kubernetes`), or something does not come up.
    pub async fn start(nodes: &[&str]) -> Result<Self> {
        let mut builder = Cluster::builder().outside(CONTROL_PLANE);
        for node in nodes {
            builder = builder.node(*node);
        }
        let cluster = builder.build()?;
        let api = ApiServer::start_on(&cluster, CONTROL_PLANE)?;
        let objects = Objects::new(api.kubeconfig()).await?;
        for node in cluster.nodes() {
            let addresses = node.addresses();
            let cidrs = addresses.pod_cidrs();
            let node = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": { "name": node.name() },
                "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
                "status": { "addresses": [
                    { "type": "InternalIP", "address": addresses.ipv4 },
                    { "type": "InternalIP", "address": addresses.ipv6 },
                ]},
            });
            objects.create(&node).await?;
        }
        Ok(Self { objects, api, cluster })
    }

    /// Makes a namespace, in the mesh.
    ///
    /// # Errors
    /// There is one of that name.
    pub async fn add_namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "labels": { "weft.dev/mesh": "enabled" } },
        });
        self.objects.create(&namespace).await
    }

    /// Makes a pod as a scheduler and a kubelet would: the API server says its uid, and is told
    /// its addresses.
    ///
    /// # Errors
    /// The API server refuses it, or it cannot be run.
    pub async fn add_pod(&self, spec: PodSpec) -> Result<Arc<Pod>> {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": spec.name, "namespace": spec.namespace,
                "labels": spec.labels, "annotations": spec.annotations,
            },
            "spec": {
                "nodeName": spec.node, "serviceAccountName": spec.service_account,
                "automountServiceAccountToken": false, "hostNetwork": spec.host_network,
                "containers": [{ "name": "main", "image": "local" }],
            },
        });
        let made = self.objects.apply(&object).await?;
        let uid = made.metadata.uid.context("the API server gave no uid")?;
        let pod = self.cluster.add_pod(spec.uid(uid))?;
        let addresses = pod.addresses().both();
        object["status"] = json!({
            "phase": "Running", "podIP": addresses[0],
            "podIPs": addresses.map(|ip| json!({ "ip": ip })),
        });
        self.objects.apply(&object).await?;
        Ok(pod)
    }

    /// Agents that take their manifests from the API server, each with a root of the cluster's
    /// directory.
    pub fn mesh_options(&self) -> MeshOptions {
        MeshOptions::default().kubeconfig(self.api.nodes_kubeconfig())
    }

    /// Makes what the authority and its agents need in the API server. For each node, how its
    /// agent is to be started, with certificates of this life.
    ///
    /// # Errors
    /// The API server refuses something.
    pub async fn prepare_authority(
        &self,
        certificate_life: &str,
    ) -> Result<BTreeMap<String, MeshOptions>> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": SYSTEM },
        });
        self.objects.create(&namespace).await?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": AGENT, "namespace": SYSTEM },
        });
        self.objects.create(&account).await?;
        let host = self.cluster.node(CONTROL_PLANE)?.addresses().ipv4;
        let mut all = BTreeMap::new();
        for node in self.cluster.nodes() {
            let token = self.cluster.directory().join(format!("{}.token", node.name()));
            fs::write(&token, self.agent_token(node.name()).await?)?;
            let mut options = self.mesh_options();
            let address = format!("https://{host}:{CA_PORT}");
            let name = format!("{CA}.{SYSTEM}.svc");
            for argument in ["--ca-address", &address, "--ca-name", &name, "--ca-token"] {
                options = options.agent_argument(argument);
            }
            options = options.agent_argument(token).agent_argument("--ca-root");
            options = options.agent_argument(self.trust_bundle());
            options = options.agent_argument("--certificate-life").agent_argument(certificate_life);
            all.insert(node.name().to_owned(), options);
        }
        Ok(all)
    }

    /// Starts the authority, and waits until it issues and has published its root.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_authority(&self) -> Result<Process> {
        let mut authority = self
            .cluster
            .node(CONTROL_PLANE)?
            .run(binary("weft")?)
            .args(["ca", "--pod", "weft-ca-0", "--namespace", SYSTEM])
            .args(["--listen", &format!("0.0.0.0:{CA_PORT}")])
            .args(["--trust-bundle", TRUST_BUNDLE])
            .args(["--agent-account", &format!("{SYSTEM}/{AGENT}")])
            .arg("--kubeconfig")
            .arg(self.api.nodes_kubeconfig())
            .spawn()?;
        authority.await_error_within(CA_STARTS_WITHIN, "issues certificates")?;
        let bundles: Api<ConfigMap> = Api::namespaced(self.objects.client(), SYSTEM);
        let roots = eventually_async("the trust bundle", async || {
            let bundle = bundles.get_opt(TRUST_BUNDLE).await?;
            Ok(bundle.and_then(|bundle| bundle.data?.remove("ca.crt")))
        });
        fs::write(self.trust_bundle(), roots.await?)?;
        Ok(authority)
    }

    /// Where a kubelet would have mounted it.
    fn trust_bundle(&self) -> PathBuf {
        self.cluster.directory().join("ca.crt")
    }

    /// A token such as a kubelet mounts for the agent of a node, whose pod is an object alone.
    async fn agent_token(&self, node: &str) -> Result<String> {
        let name = format!("{AGENT}-{node}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": SYSTEM },
            "spec": {
                "nodeName": node, "serviceAccountName": AGENT, "hostNetwork": true,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "agent", "image": "local" }],
            },
        });
        self.objects.create(&pod).await?;
        self.objects.token(SYSTEM, AGENT, Some(CA), Some(&name)).await
    }
}
