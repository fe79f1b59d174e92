//! The cluster: two nodes, pods on them that run and are objects as well, and what is measured.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;
use weft_tests::kubernetes::ApiCluster;
use weft_tests::{Pod, PodSpec, Process};

use crate::load;

/// The nodes with agents.
pub const NODES: [&str; 2] = ["node-0", "node-1"];
/// The namespace of the pods that run.
pub const NAMESPACE: &str = "shop";
/// Where servers listen.
pub const PORT: u16 = 8080;

pub struct Stage {
    servers: Vec<Process>,
    /// Last, for it removes what the others run in.
    pub base: ApiCluster,
}

impl Stage {
    /// With namespaces, and nodes for the pods that are objects alone.
    pub async fn build() -> Result<Self> {
        let base = ApiCluster::start(&NODES).await?;
        base.add_namespace(NAMESPACE).await?;
        base.objects.create_all(load::namespaces_and_nodes(NODES.len())).await?;
        Ok(Self { servers: Vec::new(), base })
    }

    /// Makes many objects.
    pub async fn create_all(&self, what: &str, all: impl IntoIterator<Item = Value>) -> Result<()> {
        let began = Instant::now();
        let mut count = 0_usize;
        self.base.objects.create_all(all.into_iter().inspect(|_| count += 1)).await?;
        println!("made {count} {what} in {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// A pod that runs.
    pub async fn add_pod(&self, name: &str, app: &str, node: &str) -> Result<Arc<Pod>> {
        let spec = PodSpec::new(NAMESPACE, name, node).label("app", app).service_account(app);
        self.base.add_pod(spec).await
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
    let text = fs::read_to_string(&path).context(path)?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |field: usize| -> Result<f64> {
        Ok(fields.split_whitespace().nth(field - 3).context("/proc/PID/stat")?.parse()?)
    };
    let per_second = rustix::param::clock_ticks_per_second();
    Ok((ticks(14)? + ticks(15)?) / per_second as f64)
}
