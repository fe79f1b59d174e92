//! Many services.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use weft_tests::{MeshNode, Pod, eventually, eventually_within};

use crate::load::{Backend, Load, service_address};
use crate::stage::{NODES, Stage, cpu_seconds, memory};

/// One of so many services leads to a pod that runs; those are dialled.
const DIALLED: usize = 10;
/// Longer than an agent waits before it gives freed memory back.
const QUIET: Duration = Duration::from_secs(6);
/// Part of a core that an agent uses at most when it has nothing to do.
const AT_REST: f64 = 0.02;
/// How often `connect()` is timed with few services, and with many.
const REPEATS: usize = 5;

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 50_000)]
    pods: usize,
    #[arg(long, default_value_t = 5_000)]
    services: usize,
    /// With how many services `connect()` is compared.
    #[arg(long, default_value_t = 10)]
    few: usize,
    #[arg(long, default_value_t = 100)]
    policies: usize,
    #[arg(long, default_value_t = 30)]
    rest_seconds: u64,
}

pub async fn run(options: &Options) -> Result<()> {
    let mut stage = Stage::build().await?;
    let load = Load { pods: options.pods, policies: options.policies };
    stage.create_all("pods and policies", load.objects()).await?;
    let [near, fresh] = NODES;
    let server = stage.add_server("server", near).await?;
    let client = stage.add_pod("client", "client", near).await?;
    let backend = Backend { address: server.addresses().ipv4, node: near };
    let services = |range: Range<usize>| {
        let backend = &backend;
        range.flat_map(move |index| {
            load.service(index, is_dialled(options, index).then_some(backend))
        })
    };
    stage.create_all("objects of services", services(0..options.few)).await?;

    let agent = start(&stage, near)?;
    await_services(&agent, options.few)?;
    let with_few = dial(&client, 0..options.few, options)?;
    stage.create_all("objects of services", services(options.few..options.services)).await?;
    await_services(&agent, options.services)?;
    await_rest(&agent)?;
    let with_many = dial(&client, 0..options.few, options)?;
    let spread = dial(&client, options.few..options.services, options)?;

    println!("{load:?}, {} services", options.services);
    for (what, part) in [("p50", 0), ("p99", 1)] {
        println!(
            "connect() to one of {few} services, {what}: {:.1} µs while there are {few}, {:.1} µs \
             while there are {} ({:.2} times); {:.1} µs to others of these in turn",
            with_few[part] / 1e3,
            with_many[part] / 1e3,
            options.services,
            with_many[part] / with_few[part],
            spread[part] / 1e3,
            few = options.few,
        );
    }
    drop(agent);

    // On a node that has never had an agent.
    let began = Instant::now();
    let agent = start(&stage, fresh)?;
    println!("from the agent's start to its first policy: {:.2} s", began.elapsed().as_secs_f64());
    await_services(&agent, options.services)?;
    let pid = await_rest(&agent)?;
    println!("CPU until then: {:.2} s", cpu_seconds(pid)?);
    for (what, field) in [
        ("resident memory", "VmRSS"),
        ("at most", "VmHWM"),
        ("of its own", "RssAnon"),
        ("of files", "RssFile"),
        ("shared with the kernel", "RssShmem"),
    ] {
        println!("{what}: {:.1} MiB", memory(pid, field)?);
    }
    let (before, since) = (cpu_seconds(pid)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(options.rest_seconds)).await;
    let used = cpu_seconds(pid)? - before;
    println!("CPU at rest: {:.2} % of a core", 100.0 * used / since.elapsed().as_secs_f64());
    println!("resident memory: {:.1} MiB", memory(pid, "VmRSS")?);
    Ok(())
}

fn is_dialled(options: &Options, index: usize) -> bool {
    index < options.few || index.is_multiple_of(DIALLED)
}

/// Starts an agent, without a proxy, and waits for its first policy.
fn start(stage: &Stage, node: &str) -> Result<MeshNode> {
    let options = stage.base.mesh_options().without_proxy();
    let cluster = &stage.base.cluster;
    let node = cluster.mesh_node(cluster.node(node)?, &options)?;
    node.start_agent()?;
    node.await_ready()?;
    Ok(node)
}

/// Waits until so many services are in force.
fn await_services(node: &MeshNode, count: usize) -> Result<()> {
    // The API server's own is one, too.
    eventually("the services to be in force", || {
        let status = node.status().ok()?;
        (status["services"].as_u64()? > count as u64).then_some(())
    })
}

/// Waits until an agent has nothing left to do for [`QUIET`].
fn await_rest(node: &MeshNode) -> Result<u32> {
    let pid = node.agent().as_ref().context("no agent")?.pid();
    eventually_within(QUIET * 10, "the agent to be at rest", || {
        let before = cpu_seconds(pid).ok()?;
        std::thread::sleep(QUIET);
        (cpu_seconds(pid).ok()? - before < AT_REST * QUIET.as_secs_f64()).then_some(pid)
    })
}

/// Medians of p50 and p99 in nanoseconds.
fn dial(client: &Arc<Pod>, services: Range<usize>, options: &Options) -> Result<[f64; 2]> {
    let to: Vec<String> = services
        .filter(|index| is_dialled(options, *index))
        .map(|index| SocketAddr::from((service_address(index), 80)).to_string())
        .collect();
    let mut runs: Vec<Value> = Vec::new();
    for _ in 0..REPEATS {
        let output = client.tool("dial")?.args(&to).output()?;
        let line = output.json().pop().with_context(|| output.stderr.clone())?;
        runs.push(line);
    }
    let median = |field: &str| -> Result<f64> {
        let values = runs.iter().map(|run| run[field].as_f64().context("a figure"));
        let mut values = values.collect::<Result<Vec<_>>>()?;
        values.sort_by(f64::total_cmp);
        values.get(REPEATS / 2).copied().context("a figure")
    };
    Ok([median("p50_ns")?, median("p99_ns")?])
}
