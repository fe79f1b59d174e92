//! What the API server has, read once.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use weft_model::dialect::Finding;
use weft_model::mesh::Settings;

use crate::source::Cluster;

/// How long listing everything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// How many objects.
    pub objects: usize,
    /// What is to be said about them, by object.
    pub findings: Vec<Finding>,
}

/// A client of the API server: by a kubeconfig, else of the pod's service account, else as
/// kubectl's.
///
/// # Errors
/// Where there is no way to an API server.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    Client::try_from(config(kubeconfig).await?).context("the API server's client")
}

async fn config(kubeconfig: Option<&Path>) -> anyhow::Result<Config> {
    let Some(path) = kubeconfig else {
        return Config::infer().await.context("no way to the API server; give --kubeconfig");
    };
    let place = || format!("--kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(place)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(place)
}

/// Reads all objects as an agent does.
///
/// # Errors
/// Where the API server does not answer, or does not let them be listed.
pub async fn read(kubeconfig: Option<&Path>, settings: Settings) -> anyhow::Result<Read> {
    let cluster = Cluster::of(config(kubeconfig).await?, settings)?;
    // Whoever follows waits for as long as it takes.
    cluster.client().apiserver_version().await.context("the API server does not answer")?;
    let mut view = cluster.watch();
    let listed = tokio::time::timeout(PATIENCE, view.wait_for(|view| view.complete)).await;
    let Ok(Ok(listed)) = listed.map(|listed| listed.map(|view| view.clone())) else {
        bail!("not everything can be listed: {}", view.borrow().problems.join("; "));
    };
    let mut findings = listed.findings.to_vec();
    findings.sort_by(|a, b| {
        (&a.object, std::cmp::Reverse(a.severity), &a.field).cmp(&(
            &b.object,
            std::cmp::Reverse(b.severity),
            &b.field,
        ))
    });
    Ok(Read { objects: listed.documents, findings })
}
