//! Two nodes, a client and servers, and traffic that goes on all the time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::kubernetes::ApiCluster;
use weft_tests::{Pod, PodSpec, Process};

pub const NODES: [&str; 2] = ["node-a", "node-b"];
const NAMESPACE: &str = "shop";
const PORT: u16 = 8080;

pub struct Town {
    pub client: Arc<Pod>,
    /// On the client's node, and on the other.
    pub servers: [Arc<Pod>; 2],
    _processes: Vec<Process>,
    /// Last, for it removes what the others run in.
    pub base: ApiCluster,
}

/// New connections without end, and one that is held, to each server.
pub struct Load {
    pub new: [Process; 2],
    pub held: [Process; 2],
}

impl Town {
    pub async fn build() -> Result<Self> {
        let base = ApiCluster::start(&NODES).await?;
        base.add_namespace(NAMESPACE).await?;
        let [here, there] = NODES;
        let pod = async |name: &str, node: &str| {
            let spec = PodSpec::new(NAMESPACE, name, node).label("app", name);
            base.add_pod(spec.service_account(name)).await
        };
        let client = pod("client", here).await?;
        let servers = [pod("near", here).await?, pod("far", there).await?];
        let mut processes = Vec::new();
        for server in &servers {
            let serve = ["--quiet", "--tcp", &PORT.to_string()];
            processes.push(server.tool("serve")?.args(serve).spawn()?);
            server.await_listening(PORT)?;
        }
        Ok(Self { client, servers, _processes: processes, base })
    }

    /// Begins traffic, and waits until all of it flows.
    pub fn begin(&self) -> Result<Load> {
        let new = |server: &Pod| {
            let mut watch = self.client.tool("watch")?.arg("--echo").args(addresses(server));
            watch = watch.args(["--milliseconds", "5000"]);
            let mut watch = watch.spawn()?;
            watch.await_line("\"connects\":true")?;
            anyhow::Ok(watch)
        };
        let held = |server: &Pod| {
            let probe = self.client.tool("probe")?.args(["--milliseconds", "600000"]);
            let mut probe = probe.args(addresses(server)).spawn()?;
            probe.await_line("established")?;
            anyhow::Ok(probe)
        };
        let [near, far] = &self.servers;
        Ok(Load { new: [new(near)?, new(far)?], held: [held(near)?, held(far)?] })
    }

    /// One new connection with a request, to a server.
    pub fn ask(&self, server: &Pod) -> Result<Value> {
        const PATIENCE: Duration = Duration::from_secs(20);
        self.ask_as(&self.client, server, PATIENCE)
    }

    /// The same from another pod, and how long it waits for an answer.
    pub fn ask_as(&self, client: &Pod, server: &Pod, patience: Duration) -> Result<Value> {
        let connect = client.tool("connect")?.args(["--send", "hello", "--milliseconds"]);
        let connect = connect.arg(patience.as_millis().to_string());
        let output = connect.args(addresses(server)).output()?;
        output.json().pop().with_context(|| output.stderr.clone())
    }
}

impl Load {
    /// Attempts and failures of new connections so far, near and far.
    pub fn counts(&self) -> Result<[(u64, u64); 2]> {
        let count = |watch: &Process| {
            let last = watch.json().pop().context("no attempts")?;
            let number = |field: &str| last[field].as_u64().context("a number");
            anyhow::Ok((number("attempts")?, number("failures")?))
        };
        Ok([count(&self.new[0])?, count(&self.new[1])?])
    }

    /// Whether the connections that are held go on.
    pub fn check_held(&mut self) -> Result<()> {
        for (held, which) in self.held.iter_mut().zip(["near", "far"]) {
            ensure!(held.is_running(), "the connection {which} ended: {}", held.stdout());
        }
        Ok(())
    }

    /// What went wrong with new connections.
    pub fn errors(&self) -> String {
        let failed = |watch: &Process| {
            let lines = watch.json().into_iter().filter(|line| line["event"] == "changed");
            lines.map(|line| line.to_string()).collect::<Vec<_>>().join("\n")
        };
        format!("near: {}\nfar: {}", failed(&self.new[0]), failed(&self.new[1]))
    }
}

fn addresses(server: &Pod) -> [String; 1] {
    [SocketAddr::to_string(&server.v4(PORT))]
}
