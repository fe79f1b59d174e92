//! The authority is away for ten times as long as certificates live.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Mesh, eventually, eventually_within};

use crate::town::Town;

const LIFE: Duration = Duration::from_secs(12);
/// What the authority logs.
const ISSUED: &str = "issued a certificate";

/// docs/ca.md, "When the authority is away".
#[tokio::test(flavor = "multi_thread")]
async fn certificates_end_while_the_authority_is_away_and_tunnels_that_are_open_go_on() -> Result<()>
{
    let town = Town::build().await?;
    let options = town.base.prepare_authority(&format!("{}s", LIFE.as_secs())).await?;
    let mut authority = town.base.start_authority().await?;
    let mesh = town.base.cluster.start_mesh_with(|node| options[node].clone())?;
    let mut load = town.begin()?;
    let [near, far] = &town.servers;
    eventually_within(LIFE * 4, "each certificate to be renewed twice", || {
        let log = authority.stderr();
        let issued = |account| {
            let to = format!("/sa/{account} ");
            log.lines().filter(|line| line.contains(ISSUED) && line.contains(&to)).count()
        };
        ["client", "near", "far"].into_iter().all(|account| issued(account) > 2).then_some(())
    })
    .with_context(|| authority.stderr())?;
    let counts = load.counts()?;
    ensure!(counts.iter().all(|(_, failures)| *failures == 0), "{}", load.errors());
    let [_, mut new_far] = load.new;

    authority.kill();
    let gone = Instant::now();
    // What is there stays in use until it ends.
    let answer = town.ask(far)?;
    ensure!(answered(&answer), "{answer}");
    for node in mesh.nodes() {
        eventually("certificates to end", || lacks_certificates(&node.status().ok()?))?;
    }
    println!("certificates have ended {:.1} s after it", gone.elapsed().as_secs_f64());
    while gone.elapsed() < LIFE * 10 {
        let (to_near, to_far) = (town.ask(near)?, town.ask(far)?);
        ensure!(answered(&to_near), "on the same node: {to_near}");
        ensure!(!answered(&to_far), "to the other node: {to_far}");
        for held in &mut load.held {
            ensure!(held.is_running(), "a connection that was open ended: {}", held.stdout());
        }
        for node in mesh.nodes() {
            let status = node.weft(["status"])?;
            ensure!(status.status.code() == Some(1), "weft status: {}", status.stdout);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = Instant::now();
    let answer = town.ask(far)?;
    println!("meanwhile to the other node, after {:.1} s: {answer}", asked.elapsed().as_secs_f64());
    ensure!(new_far.is_running());

    let back = Instant::now();
    let _authority = town.base.start_authority().await?;
    eventually("new connections", || town.ask(far).ok().filter(answered))?;
    println!(
        "away for {:.0} s; new connections {:.1} s after its start",
        back.duration_since(gone).as_secs_f64(),
        back.elapsed().as_secs_f64()
    );
    await_healthy(&mesh)?;
    for held in &mut load.held {
        ensure!(held.is_running(), "a connection that was open ended: {}", held.stdout());
    }
    Ok(())
}

fn answered(line: &Value) -> bool {
    line["answer"] == "hello"
}

fn lacks_certificates(status: &Value) -> Option<()> {
    status["problems"].to_string().contains("certificate").then_some(())
}

fn await_healthy(mesh: &Mesh) -> Result<()> {
    mesh.nodes().iter().try_for_each(|node| {
        eventually("certificates for all", || {
            lacks_certificates(&node.status().ok()?).is_none().then_some(())
        })
    })
}
