//! What the API server has, read once.

use std::path::Path;

use anyhow::Context as _;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use weft_model::dialect::{Document, Finding, read_object};
use weft_model::mesh::{Mesh, Settings};

use super::kinds::{Kind, kinds};
use super::watch;

/// Objects in one answer of the API server.
const PAGE: u32 = 500;
/// Kinds that are listed at once.
const CONCURRENT: usize = 4;

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
    let config = match kubeconfig {
        Some(path) => {
            let place = || format!("--kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(place)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(place)?
        }
        None => Config::infer().await.context("no way to the API server; give --kubeconfig")?,
    };
    Client::try_from(config).context("the API server's client")
}

/// Reads all objects that users write.
///
/// # Errors
/// Where the API server does not answer, or does not let them be listed.
pub async fn read(client: &Client, settings: &Settings) -> anyhow::Result<Read> {
    let lists: Vec<Vec<Document>> = stream::iter(kinds())
        .map(|kind| list(client.clone(), kind, settings))
        .buffered(CONCURRENT)
        .try_collect()
        .await?;
    let documents: Vec<Document> = lists.into_iter().flatten().collect();
    let mut mesh = Mesh { settings: settings.clone(), ..Mesh::default() };
    for document in &documents {
        mesh.insert_document(document);
    }
    let mut findings = mesh.settle();
    findings.extend(documents.iter().flat_map(|document| document.findings.iter().cloned()));
    findings.sort_by(|a, b| {
        (&a.object, std::cmp::Reverse(a.severity), &a.field).cmp(&(
            &b.object,
            std::cmp::Reverse(b.severity),
            &b.field,
        ))
    });
    Ok(Read { objects: documents.len(), findings })
}

async fn list(client: Client, kind: &Kind, settings: &Settings) -> anyhow::Result<Vec<Document>> {
    let api: Api<DynamicObject> = Api::all_with(client, &kind.resource);
    let mut documents = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            // Its definition is not installed.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(documents),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{} cannot be listed", kind.resource.plural));
            }
        };
        let more = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        for object in page.items {
            if let Some(value) = watch::value(kind, object) {
                documents.push(read_object(settings, &value));
            }
        }
        match more {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(documents),
        }
    }
}
