//! The cluster: an API server, two nodes, and pods on them that are objects as well.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::kubernetes::{ApiServer, Objects};
use weft_tests::{Cluster, MeshOptions, Pod, PodSpec, Process};

use crate::load;

/// The nodes with agents.
pub const NODES: [&str; 2] = ["node-0", "node-1"];
/// The namespace of the pods that run.
pub const NAMESPACE: &str = "shop";
/// Where servers listen.
pub const PORT: u16 = 8080;

pub struct Stage {
    pub objects: Objects,
    /// The agents are to take their manifests from the API server.
    pub options: MeshOptions,
    servers: Vec<Process>,
    _api: ApiServer,
    /// Last, for it removes what the others run in.
    pub cluster: Cluster,
}

impl Stage {
    /// With the nodes' own objects, and those that others need.
    pub async fn build() -> Result<Self> {
        let mut builder = Cluster::builder().outside("control-plane");
        for node in NODES {
            builder = builder.node(node);
        }
        let cluster = builder.build()?;
        let api = ApiServer::start_on(&cluster, "control-plane")?;
        let objects = Objects::new(api.kubeconfig()).await?;
        let options = MeshOptions::default().kubeconfig(api.nodes_kubeconfig());
        let stage = Self { objects, options, servers: Vec::new(), _api: api, cluster };
        let meshed = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"weft.dev/mesh": "enabled"}},
        });
        stage.objects.create(&meshed).await?;
        for node in stage.cluster.nodes() {
            let addresses = node.addresses();
            let cidrs = addresses.pod_cidrs();
            let object = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name()},
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
                "status": {"addresses": [
                    {"type": "InternalIP", "address": addresses.ipv4},
                    {"type": "InternalIP", "address": addresses.ipv6},
                ]},
            });
            stage.objects.create(&object).await?;
        }
        stage.objects.create_all(load::namespaces_and_nodes(NODES.len())).await?;
        Ok(stage)
    }

    /// Makes many objects.
    pub async fn create_all(&self, what: &str, all: impl IntoIterator<Item = Value>) -> Result<()> {
        let began = Instant::now();
        let mut count = 0_usize;
        self.objects.create_all(all.into_iter().inspect(|_| count += 1)).await?;
        println!("made {count} {what} in {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Makes a pod as a kubelet would: the API server says its uid, and it says its address.
    pub async fn add_pod(&self, name: &str, app: &str, node: &str) -> Result<Arc<Pod>> {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}},
            "spec": {
                "nodeName": node, "serviceAccountName": app,
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "local"}],
            },
        });
        let made = self.objects.apply(&object).await?;
        let uid = made.metadata.uid.context("the API server gave no uid")?;
        let spec = PodSpec::new(NAMESPACE, name, node).label("app", app).uid(uid);
        let pod = self.cluster.add_pod(spec.service_account(app))?;
        let addresses = pod.addresses().both();
        object["status"] = json!({
            "phase": "Running", "podIP": addresses[0],
            "podIPs": addresses.map(|ip| json!({"ip": ip})),
        });
        self.objects.apply(&object).await?;
        Ok(pod)
    }

    /// A pod that serves.
    pub async fn add_server(&mut self, name: &str, node: &str) -> Result<Arc<Pod>> {
        let pod = self.add_pod(name, "server", node).await?;
        let server = pod.tool("serve")?.args(["--quiet", "--tcp", &PORT.to_string()]).spawn()?;
        pod.await_listening(PORT)?;
        self.servers.push(server);
        Ok(pod)
    }
}

/// A line of `/proc/PID/status`, in MiB.
pub fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim_matches([':', ' ', '\t']).strip_suffix(" kB"));
    let kib: f64 = kib.with_context(|| format!("no {field} of {pid}"))?.parse()?;
    Ok(kib / 1024.0)
}

/// CPU time of a process in seconds: user and system, fields 14 and 15 of proc(5)'s `stat`.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(Path::new(&path)).context(path)?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |field: usize| -> Result<f64> {
        Ok(fields.split_whitespace().nth(field - 3).context("/proc/PID/stat")?.parse()?)
    };
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((ticks(14)? + ticks(15)?) / per_second as f64)
}
