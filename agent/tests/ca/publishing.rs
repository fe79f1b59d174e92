//! The trust bundle in every namespace, and who writes it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use libtest_mimic::Trial;
use serde_json::json;
use weft_tests::eventually_async;

use crate::fixture::{Fixture, Shared};

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials([
        ("the_trust_bundle_is_in_every_namespace_and_is_made_good", |fixture| {
            Box::pin(everywhere(fixture))
        }),
        ("another_replica_leads_when_the_leader_dies", |fixture| Box::pin(leaders(fixture))),
    ])
}

async fn everywhere(fixture: &Fixture) -> Result<()> {
    let _authority = fixture.authority("ca", &[]).await?;
    let roots = eventually_async("the bundle", async || fixture.roots(&fixture.shop).await).await?;
    ensure!(roots.starts_with("-----BEGIN CERTIFICATE-----"), "{roots}");

    let late = format!("{}-late", fixture.shop);
    fixture
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": late } }))
        .await?;
    let found =
        eventually_async("the bundle of a new namespace", async || fixture.roots(&late).await);
    ensure!(found.await? == roots);

    fixture
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": fixture.system, "namespace": fixture.shop },
            "data": { "ca.crt": "edited" },
        }))
        .await?;
    eventually_async("the edit to be made good", async || {
        Ok((fixture.roots(&fixture.shop).await?.as_deref() == Some(&roots)).then_some(()))
    })
    .await?;

    // What is right is not written again.
    let version = async || -> Result<Option<String>> {
        Ok(fixture.bundle(&fixture.shop).await?.and_then(|map| map.metadata.resource_version))
    };
    let before = version().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(version().await? == before);
    Ok(())
}

async fn leaders(fixture: &Fixture) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(fixture.client.clone(), &fixture.system);
    let holder = async || -> Result<Option<String>> {
        let lease = leases.get_opt("weft-ca").await?;
        Ok(lease.and_then(|lease| lease.spec?.holder_identity).filter(|name| !name.is_empty()))
    };
    // Both at once: they agree on one root and one leader.
    let (first, second) =
        tokio::join!(fixture.authority("one", &[]), fixture.authority("two", &[]));
    let mut replicas = [("one", first?), ("two", second?)];
    let leader = eventually_async("a leader", async || holder().await).await?;
    let mut made = 0;
    for (_, replica) in &replicas {
        made += usize::from(replica.text().contains("made a trust root"));
        let agent = fixture.agent(replica, Duration::from_secs(60)).await?;
        let id = weft_agent::identity::SpiffeId::new("cluster.local", &fixture.shop, "web");
        agent.client.issue(&id).await?;
    }
    ensure!(made == 1, "{made} roots were made");

    let (_, dies) =
        replicas.iter_mut().find(|(name, _)| *name == leader).context("an unknown leader")?;
    dies.kill()?;
    eventually_async("another leader", async || Ok(holder().await?.filter(|now| *now != leader)))
        .await?;
    let late = format!("{}-late", fixture.shop);
    fixture
        .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": late } }))
        .await?;
    eventually_async("what only a leader writes", async || fixture.roots(&late).await).await?;
    Ok(())
}
