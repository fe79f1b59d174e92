//! Measures a mesh against no mesh, on the same topology, in the same run.

mod measure;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use weft_tests::{Cluster, Mesh, MeshOptions, NamespaceSpec, Pod, PodSpec, Process};

use crate::nginx;
use crate::repository::find_command;
use crate::steps::Steps;

const HTTP: u16 = 8080;
const IPERF: u16 = 5201;
/// What nginx answers with.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const POLICIES: &str = include_str!("bench/bench.yaml");

/// `cargo xtask bench`
#[derive(Args)]
pub struct Arguments {
    /// Where client and server run.
    scenario: Scenario,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
    /// How often everything is measured; the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    repeats: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// On one node: the direct path.
    SameNode,
    /// On two nodes: a tunnel with mTLS.
    CrossNode,
}

/// A line of the result.
#[derive(Serialize)]
struct Line {
    scenario: &'static str,
    metric: &'static str,
    direct: f64,
    mesh: f64,
    /// None where there is nothing to compare with.
    ratio: Option<f64>,
}

/// The metrics, in the order in which they are printed.
const METRICS: [(&str, &str); 6] = [
    ("rps_c64", "requests/s, 64 connections"),
    ("p50_us_c1", "median latency in µs, 1 connection"),
    ("newconn_per_s", "new connections/s"),
    ("gbit_per_s", "Gbit/s, one stream"),
    ("cpu_us_per_req", "the proxies' CPU in µs per request"),
    ("rss_kb", "memory of agents and proxies in KiB"),
];

/// Runs the benchmark and prints it.
///
/// # Errors
/// When something cannot be measured, or the mesh did not enforce and observe meanwhile.
pub fn run(steps: &mut Steps, arguments: &Arguments) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the benchmark makes network namespaces and loads eBPF programs: run it as root"
    );
    let scenario = arguments.scenario;
    let plain = steps.during("pods without mesh", |_| Side::start(scenario, false))?;
    let meshed = steps.during("pods with mesh", |_| Side::start(scenario, true))?;
    let mut direct = Vec::new();
    let mut mesh = Vec::new();
    for repeat in 1..=arguments.repeats {
        let title = format!("measurement {repeat} of {}", arguments.repeats);
        steps.during(&title, |bar| {
            let mut values = [Values::default(), Values::default()];
            // One right after the other: the machine is not the same from minute to minute.
            for measurement in Measurement::ALL {
                for (side, values) in [&plain, &meshed].into_iter().zip(&mut values) {
                    bar.set_message(format!("{}: {}", side.name(), measurement.describe()));
                    side.measure(measurement, values)?;
                }
            }
            let [plain, meshed] = values;
            direct.push(plain.0);
            mesh.push(meshed.0);
            Ok(())
        })?;
    }
    meshed.check_enforced(scenario)?;

    let lines: Vec<Line> = METRICS
        .iter()
        .enumerate()
        .map(|(index, (metric, _))| {
            let median = |runs: &[[f64; 6]]| {
                let values = runs.iter().filter_map(|run| run.get(index).copied());
                median(values.collect())
            };
            let (direct, mesh) = (median(&direct), median(&mesh));
            let ratio = (direct > 0.0).then(|| rounded(mesh / direct));
            Line { scenario: scenario.name(), metric, direct, mesh, ratio }
        })
        .collect();
    if arguments.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
    } else {
        print(&lines);
    }
    Ok(())
}

fn print(lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["", "no mesh", "mesh", "ratio"]);
    for (line, (_, words)) in lines.iter().zip(METRICS) {
        let number = |value: f64| {
            if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
        };
        let ratio = line.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        table.add_row([words.to_owned(), number(line.direct), number(line.mesh), ratio]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if let Some(line) = lines.first() {
        println!("\n{}", line.scenario);
    }
    println!("{table}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    rounded(values.get(values.len() / 2).copied().unwrap_or_default())
}

/// Three decimals are more than the machine can tell.
fn rounded(value: f64) -> f64 {
    // Adding 0 makes 0 of -0, which is what a sum over nothing is.
    (value * 1000.0).round() / 1000.0 + 0.0
}

/// The metrics of one run, in the order of [`METRICS`].
#[derive(Clone, Copy, Debug, Default)]
struct Values([f64; 6]);

/// What is run to get them.
#[derive(Clone, Copy)]
enum Measurement {
    Busy,
    Alone,
    New,
    Stream,
}

impl Measurement {
    const ALL: [Self; 4] = [Self::Busy, Self::Alone, Self::New, Self::Stream];

    fn describe(self) -> &'static str {
        match self {
            Self::Busy => "64 connections",
            Self::Alone => "1 connection",
            Self::New => "new connections",
            Self::Stream => "one stream",
        }
    }
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::CrossNode => "cross-node",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::SameNode => "direct",
            Self::CrossNode => "tunnel",
        }
    }
}

/// A client and a server, with or without a mesh. Fields go in this order when it is dropped.
struct Side {
    mesh: Option<Mesh>,
    _servers: [Process; 2],
    client: Arc<Pod>,
    http: SocketAddr,
    iperf: SocketAddr,
    cluster: Cluster,
}

impl Side {
    fn start(scenario: Scenario, with_mesh: bool) -> Result<Self> {
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
        let mesh = if with_mesh {
            cluster.apply("bench.yaml", POLICIES)?;
            Some(cluster.start_mesh(&MeshOptions::default().log("warn"))?)
        } else {
            None
        };
        let client = cluster.pod("bench/client")?;
        let (http, iperf) = (server.v4(HTTP), server.v4(IPERF));
        Ok(Self { mesh, _servers: servers, client, http, iperf, cluster })
    }

    fn name(&self) -> &'static str {
        if self.mesh.is_some() { "mesh" } else { "no mesh" }
    }

    fn measure(&self, measurement: Measurement, values: &mut Values) -> Result<()> {
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
        self.sum(|node| node.proxy().as_ref().map(Process::pid), measure::cpu_us)
    }

    fn memory_kb(&self) -> Result<f64> {
        Ok(self.sum(|node| node.proxy().as_ref().map(Process::pid), measure::rss_kb)?
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
    fn check_enforced(&self, scenario: Scenario) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "measures for a quarter of a minute, as root"]
    fn measures_without_mesh() -> Result<()> {
        for scenario in [Scenario::SameNode, Scenario::CrossNode] {
            let side = Side::start(scenario, false)?;
            let mut values = Values::default();
            for measurement in Measurement::ALL {
                side.measure(measurement, &mut values)?;
            }
            println!("{} {values:?}", scenario.name());
            assert!(values.0.iter().take(4).all(|value| *value > 0.0));
        }
        Ok(())
    }
}
