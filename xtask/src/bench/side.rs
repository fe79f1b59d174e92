//! A client and a server, and what carries their connections.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_tests::{Cluster, Mesh, MeshOptions, NamespaceSpec, Pod, PodSpec, Process};

use super::{Measurement, Scenario, Values, envoy, measure};
use crate::nginx;
use crate::repository::find_command;

const HTTP: u16 = 8080;
const IPERF: u16 = 5201;
/// What nginx answers with.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POLICIES: &str = include_str!("bench.yaml");

/// What carries the connections of a side.
pub(super) enum Means {
    /// Nothing: no mesh.
    None,
    /// Agents and proxies.
    Weft,
    /// Sidecars, of this program.
    Envoy(PathBuf),
}

/// A client and a server, with or without a mesh. Fields go in this order when it is dropped.
pub(super) struct Side {
    mesh: Option<Mesh>,
    envoys: Vec<Process>,
    _servers: [Process; 2],
    client: Arc<Pod>,
    http: SocketAddr,
    iperf: SocketAddr,
    cluster: Cluster,
}

impl Side {
    pub(super) fn start(scenario: Scenario, means: &Means) -> Result<Self> {
        let other = match scenario {
            Scenario::SameNode => "node-a",
            Scenario::CrossNode => "node-b",
        };
        let pod = |name: &str, node| {
            PodSpec::new("bench", name, node).label("app", name).service_account(name)
        };
        let cluster = Cluster::builder()
            .node("node-a")
            .node("node-b")
            .namespace(NamespaceSpec::meshed("bench"))
            .pod(pod("client", "node-a"))
            .pod(pod("stranger", "node-a"))
            .pod(pod("server", other))
            .build()?;
        let server = cluster.pod("bench/server")?;
        let folder = cluster.directory().join("nginx");
        let iperf3 =
            find_command("iperf3").context("iperf3 is not installed: cargo xtask setup")?;
        let servers = [
            nginx::start(&server, &folder, HTTP, BODY)?,
            server.run(iperf3).args(["--server", "--port", &IPERF.to_string()]).spawn()?,
        ];
        server.await_listening(IPERF)?;
        let client = cluster.pod("bench/client")?;
        let (mut http, mut iperf) = (server.v4(HTTP), server.v4(IPERF));
        let mut envoys = Vec::new();
        let mut mesh = None;
        match means {
            Means::None => {}
            Means::Weft => {
                cluster.apply("bench.yaml", POLICIES)?;
                mesh = Some(cluster.start_mesh(&MeshOptions::default().log("warn"))?);
            }
            Means::Envoy(envoy) => {
                let folder = cluster.directory().join("envoy");
                let mtls = scenario == Scenario::CrossNode;
                let sidecars = envoy::start(envoy, &folder, &client, &server, [http, iperf], mtls)?;
                (http, iperf) = (sidecars.http, sidecars.stream);
                envoys = sidecars.processes;
            }
        }
        Ok(Self { mesh, envoys, _servers: servers, client, http, iperf, cluster })
    }

    pub(super) fn name(&self) -> &'static str {
        match (&self.mesh, self.envoys.is_empty()) {
            (Some(_), _) => "mesh",
            (None, false) => "Envoy",
            (None, true) => "no mesh",
        }
    }

    pub(super) fn measure(&self, measurement: Measurement, values: &mut Values) -> Result<()> {
        let Values([busy, median, new, stream, cpu, memory]) = values;
        match measurement {
            Measurement::Busy => {
                let before = self.proxies_cpu_us()?;
                let load = measure::wrk(&self.client, self.http, 64, true)?;
                *busy = load.per_second;
                #[allow(clippy::cast_precision_loss)]
                let requests = load.requests.max(1) as f64;
                *cpu = (self.proxies_cpu_us()? - before) / requests;
                *memory = self.memory_kb()?;
            }
            Measurement::Alone => {
                *median = measure::wrk(&self.client, self.http, 1, true)?.median_us;
            }
            Measurement::New => {
                *new = measure::wrk(&self.client, self.http, 64, false)?.per_second;
            }
            Measurement::Stream => *stream = measure::iperf3(&self.client, self.iperf)?,
        }
        Ok(())
    }

    fn proxies_cpu_us(&self) -> Result<f64> {
        let envoys = self.envoys.iter().map(|envoy| measure::cpu_us(envoy.pid()));
        Ok(self.sum(|node| node.proxy().as_ref().map(Process::pid), measure::cpu_us)?
            + envoys.sum::<Result<f64>>()?)
    }

    fn memory_kb(&self) -> Result<f64> {
        let envoys = self.envoys.iter().map(|envoy| measure::rss_kb(envoy.pid()));
        Ok(envoys.sum::<Result<f64>>()?
            + self.sum(|node| node.proxy().as_ref().map(Process::pid), measure::rss_kb)?
            + self.sum(|node| node.agent().as_ref().map(Process::pid), measure::rss_kb)?)
    }

    fn sum(
        &self,
        process: impl Fn(&weft_tests::MeshNode) -> Option<u32>,
        measure: impl Fn(u32) -> Result<f64>,
    ) -> Result<f64> {
        let nodes = self.mesh.iter().flat_map(Mesh::nodes);
        nodes.filter_map(process).map(measure).sum()
    }

    /// What was measured was a mesh: it refuses a stranger, and has seen the client's flows on
    /// the path that the scenario is about.
    pub(super) fn check_enforced(&self, scenario: Scenario) -> Result<()> {
        let Some(mesh) = &self.mesh else { return Ok(()) };
        let url = format!("http://{}/", self.http);
        let stranger = self.cluster.pod("bench/stranger")?;
        let curl = ["curl", "--silent", "--max-time", "2", "--noproxy", "*", url.as_str()];
        ensure!(
            !stranger.exec(curl)?.status.success(),
            "bench/stranger reached the server: policy was not enforced"
        );
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let mut seen = String::new();
            for node in mesh.nodes() {
                let words = ["observe", "--last", "1", "--from", "bench/client", "-o", "json"];
                seen.push_str(
                    &node.weft([&words[..], &["--path", scenario.path()]].concat())?.stdout,
                );
            }
            if seen.contains("\"client\"") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "no flow of bench/client was seen on the path {}: {seen}",
                scenario.path()
            );
        }
    }
}
