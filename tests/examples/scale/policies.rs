//! From the change of a policy to its effect.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};
use weft_tests::{Process, eventually};

use crate::load::Load;
use crate::stage::{NAMESPACE, NODES, PORT, Stage};

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Between one change's effect and the next change.
    #[arg(long, default_value_t = 200)]
    pause_milliseconds: u64,
}

pub async fn run(options: &Options) -> Result<()> {
    let mut stage = Stage::build().await?;
    let load = Load { pods: options.pods, policies: options.policies };
    stage.create_all("pods and policies", load.objects()).await?;
    let mut clients = Vec::new();
    for node in NODES {
        let server = stage.add_server(&format!("server-{node}"), node).await?;
        clients.push((stage.add_pod(&format!("client-{node}"), "client", node).await?, server));
    }
    stage.base.objects.apply(&policy(true)).await?;
    let mesh = stage.base.cluster.start_mesh(&stage.base.mesh_options())?;
    let mut watches = Vec::new();
    for (client, server) in &clients {
        let mut watch = client.tool("watch")?.arg(server.v4(PORT).to_string()).spawn()?;
        watch.await_line("\"connects\":true")?;
        watches.push(watch);
    }

    let (mut took, mut answered) = (Vec::new(), Vec::new());
    for change in 0..options.changes {
        tokio::time::sleep(Duration::from_millis(options.pause_milliseconds)).await;
        let seen: Vec<_> = watches.iter().map(|watch| changes(watch).len()).collect();
        let allowed = change % 2 == 1;
        let (began, sent) = (now()?, Instant::now());
        stage.base.objects.apply(&policy(allowed)).await?;
        answered.push(sent.elapsed().as_secs_f64() * 1e3);
        let mut last = 0;
        for (watch, seen) in watches.iter().zip(seen) {
            let at = eventually("the effect of the change", || {
                let changes = changes(watch).split_off(seen);
                changes.iter().find(|line| line["connects"] == allowed)?["at"].as_u64()
            })?;
            last = last.max(at);
        }
        took.push(Duration::from_micros(last.saturating_sub(began)).as_secs_f64() * 1e3);
    }
    println!("{load:?}, {} changes of a policy", options.changes);
    print("until the API server has answered", &mut answered);
    print("until a new connection on each of 2 nodes sees it", &mut took);
    let flaps: usize = watches.iter().map(|watch| changes(watch).len()).sum();
    println!(
        "outcomes that changed, of both nodes: {flaps} (of {} changes and the first outcome)",
        options.changes
    );
    for node in mesh.nodes() {
        let logs = node.logs();
        for (what, field) in [("compiles", "compiled_us="), ("compiles and writes", "total_us=")] {
            let mut took = logged(&logs, field);
            print(&format!("of that, {} {what}", node.name()), &mut took);
        }
    }
    Ok(())
}

/// Values of a field of log lines, in milliseconds.
fn logged(logs: &str, field: &str) -> Vec<f64> {
    let values = logs.lines().filter(|line| line.contains("applied")).filter_map(|line| {
        let value = line.split(field).nth(1)?.split_whitespace().next()?;
        value.parse::<f64>().ok()
    });
    values.map(|micros| micros / 1e3).collect()
}

/// Clients may reach servers, or nobody may.
fn policy(allowed: bool) -> Value {
    let from = if allowed { "client" } else { "nobody" };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "server", "namespace": NAMESPACE},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}]}],
        },
    })
}

fn changes(watch: &Process) -> Vec<Value> {
    watch.json().into_iter().filter(|line| line["event"] == "changed").collect()
}

fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?;
    Ok(u64::try_from(since.as_micros())?)
}

fn print(what: &str, milliseconds: &mut [f64]) {
    milliseconds.sort_by(f64::total_cmp);
    let at = |part: usize| {
        let index = (milliseconds.len() * part / 100).min(milliseconds.len().saturating_sub(1));
        milliseconds.get(index).copied().unwrap_or(f64::NAN)
    };
    println!("{what}: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(50), at(99), at(100));
}
