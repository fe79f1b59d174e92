//! Agents and the authority are killed under load.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::town::{NODES, Town};

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_when_agents_and_the_authority_are_killed() -> Result<()> {
    const KILLS: usize = 20;
    let town = Town::build().await?;
    let options = town.base.prepare_authority("20s").await?;
    let mut authority = town.base.start_authority().await?;
    let mesh = town.base.cluster.start_mesh_with(|node| options[node].clone())?;
    let mut load = town.begin()?;
    let mut killed = [0; NODES.len() + 1];
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random() % 1500)).await;
        let which = random() as usize % killed.len();
        killed[which] += 1;
        match mesh.nodes().get(which) {
            Some(node) => {
                node.kill_agent();
                tokio::time::sleep(Duration::from_millis(random() % 500)).await;
                node.start_agent()?;
                node.await_ready()?;
            }
            None => {
                authority.kill();
                tokio::time::sleep(Duration::from_millis(random() % 500)).await;
                authority = town.base.start_authority().await?;
            }
        }
    }
    load.check_held()?;
    let [near, far] = load.counts()?;
    println!("killed: agents {:?}, authority {}", &killed[..NODES.len()], killed[NODES.len()]);
    println!("attempts and failures: direct {near:?}, through tunnels {far:?}");
    ensure!(near.1 == 0 && far.1 == 0, "{}", load.errors());
    Ok(())
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
