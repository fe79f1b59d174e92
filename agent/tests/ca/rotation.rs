//! Roots that change while agents run.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::DeleteParams;
use libtest_mimic::Trial;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use weft_agent::ca::{WorkloadCertificate, material};
use weft_agent::identity::SpiffeId;
use weft_tests::eventually_async;

use crate::fixture::{Fixture, Shared};

const HOUR: Duration = Duration::from_secs(3600);

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials([
        ("a_new_root_is_trusted_before_it_issues_and_the_old_one_after", |fixture| {
            Box::pin(rotation(fixture))
        }),
        ("a_root_of_cert_managers_layout_issues_through_its_intermediates", |fixture| {
            Box::pin(brought(fixture))
        }),
    ])
}

/// Whether peers that trust `roots` take a certificate.
fn trusted(certificate: &WorkloadCertificate, roots: &str) -> Result<bool> {
    let mut store = RootCertStore::empty();
    for root in material::certificates(roots.as_bytes()).map_err(anyhow::Error::msg)? {
        store.add(root.into())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build()?;
    let chain: Vec<_> = certificate.chain.iter().cloned().map(CertificateDer::from).collect();
    let (leaf, above) = chain.split_first().context("no certificate")?;
    Ok(verifier.verify_client_cert(leaf, above, UnixTime::now()).is_ok())
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

async fn put_root(fixture: &Fixture, crt: &str, key: &str, ca: &str) -> Result<()> {
    fixture
        .apply(&json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": "weft-ca", "namespace": fixture.system },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": crt, "tls.key": key, "ca.crt": ca },
        }))
        .await
}

async fn rotation(fixture: &Fixture) -> Result<()> {
    let options = ["--root-propagation", "6s", "--root-grace", "25s"];
    let mut replica = fixture.authority("ca", &options).await?;
    let agent = fixture.agent(&replica, HOUR).await?;
    let following = tokio::spawn(agent.client.clone().follow_roots());
    let mut roots = agent.client.roots();
    let old_roots = roots.borrow().clone();
    let web = SpiffeId::new("cluster.local", &fixture.shop, "web");
    let old = agent.client.issue(&web).await?;
    // Only what the leader has written down survives a restart.
    let secrets: Api<Secret> = Api::namespaced(fixture.client.clone(), &fixture.system);
    eventually_async("the history", async || Ok(secrets.get_opt("weft-ca-roots").await?)).await?;

    secrets.delete("weft-ca", &DeleteParams::default()).await?;
    // The agent hears of the new root by itself.
    let both = tokio::time::timeout(
        Duration::from_secs(20),
        roots.wait_for(|roots| roots.matches("BEGIN").count() == 2),
    )
    .await
    .context("no second root")??
    .clone();
    let first_after = agent.client.issue(&web).await?;
    ensure!(trusted(&first_after, &old_roots)?, "it issued before peers knew of the root");
    let new = eventually_async("the new root to issue", async || {
        let new = agent.client.issue(&web).await?;
        Ok((!trusted(&new, &old_roots)?).then_some(new))
    })
    .await?;
    ensure!(trusted(&old, &both)? && trusted(&new, &both)?);
    eventually_async("the ConfigMap", async || {
        Ok((fixture.roots(&fixture.shop).await?.as_deref() == Some(&*both)).then_some(()))
    })
    .await?;

    // What was trusted is remembered.
    replica.kill()?;
    let replica = fixture.authority("ca", &options).await?;
    let restarted = fixture.agent(&replica, HOUR).await?;
    let mut reached = restarted.client.reached();
    let following_again = tokio::spawn(restarted.client.clone().follow_roots());
    tokio::time::timeout(Duration::from_secs(20), reached.changed()).await??;
    ensure!(*restarted.client.roots().borrow() == both);
    following_again.abort();
    restarted.client.issue(&web).await?;

    // And forgotten after its grace.
    let fewer = eventually_async("the old root to be forgotten", async || {
        let roots = fixture.roots(&fixture.shop).await?;
        Ok(roots.filter(|roots| roots.matches("BEGIN").count() == 1))
    });
    let fewer = fewer.await?;
    ensure!(trusted(&new, &fewer)? && !trusted(&old, &fewer)?);
    following.abort();
    Ok(())
}

async fn brought(fixture: &Fixture) -> Result<()> {
    let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate()?)?;
    let intermediate = |name: &str| -> Result<(String, String)> {
        let key = KeyPair::generate()?;
        let certificate = authority(name).signed_by(&key, &root)?;
        Ok((certificate.pem(), key.serialize_pem()))
    };
    let (first, first_key) = intermediate("first")?;
    put_root(fixture, &first, &first_key, &root.pem()).await?;
    let replica = fixture.authority("ca", &["--root-propagation", "1h"]).await?;
    let agent = fixture.agent(&replica, HOUR).await?;
    ensure!(**agent.client.roots().borrow() == *root.pem());
    let web = SpiffeId::new("cluster.local", &fixture.shop, "web");
    let below_first = agent.client.issue(&web).await?;
    ensure!(below_first.chain.len() == 2 && trusted(&below_first, &root.pem())?);

    // Another intermediate below the same root issues at once.
    let (second, second_key) = intermediate("second")?;
    put_root(fixture, &second, &second_key, &root.pem()).await?;
    let below_second = eventually_async("the second to issue", async || {
        let issued = agent.client.issue(&web).await?;
        Ok((issued.chain[1] != below_first.chain[1]).then_some(issued))
    });
    ensure!(trusted(&below_second.await?, &root.pem())?);

    // What is not usable is told, and changes nothing.
    put_root(fixture, &first, &second_key, &root.pem()).await?;
    eventually_async("the complaint", async || {
        Ok(replica.text().contains("is not that of the key in tls.key").then_some(()))
    })
    .await?;
    let issued = agent.client.issue(&web).await?;
    ensure!(issued.not_after > SystemTime::now() && trusted(&issued, &root.pem())?);
    Ok(())
}
