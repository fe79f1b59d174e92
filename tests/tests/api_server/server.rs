//! The API server is away.

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_tests::eventually;

use crate::town::Town;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changes_while_the_api_server_is_away() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(60);
    let town = Town::build().await?;
    let mesh = town.base.cluster.start_mesh(&town.base.mesh_options())?;
    let mut load = town.begin()?;
    let generations = || -> Result<Vec<String>> {
        mesh.nodes().iter().map(|node| Ok(node.status()?["generation"].to_string())).collect()
    };
    let before = generations()?;

    town.base.api.kill();
    for node in mesh.nodes() {
        eventually("the agent to say that the API server is away", || {
            let problems = node.status().ok()?["problems"].to_string();
            problems.contains("cannot be followed").then_some(())
        })?;
    }
    tokio::time::sleep(AWAY).await;
    ensure!(generations()? == before, "the policy changed");
    town.base.api.start_again()?;
    for node in mesh.nodes() {
        eventually("the agent to follow again", || {
            (node.status().ok()?["problems"] == serde_json::json!([])).then_some(())
        })?;
    }
    ensure!(generations()? == before, "the policy changed when the API server was back");
    load.check_held()?;
    let counts = load.counts()?;
    println!(
        "the API server was away for {AWAY:?}; attempts and failures, near and far: {counts:?}"
    );
    ensure!(counts.iter().all(|(_, failures)| *failures == 0), "{}", load.errors());
    Ok(())
}
