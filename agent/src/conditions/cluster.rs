//! What the API server has, read once.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::ApiResource;
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::json;
use weft_model::dialect::{Document, Finding, Severity, read_object};
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

/// Reads all objects as an agent does, and finds those that would narrow access if an agent read
/// their kind.
///
/// # Errors
/// Where the API server does not answer, or does not let them be listed.
pub async fn read(kubeconfig: Option<&Path>, settings: Settings) -> anyhow::Result<Read> {
    let cluster = Cluster::of(config(kubeconfig).await?, settings.clone())?;
    let client = cluster.client();
    // Whoever follows waits for as long as it takes.
    client.apiserver_version().await.context("the API server does not answer")?;
    let mut view = cluster.watch();
    let listed = tokio::time::timeout(PATIENCE, view.wait_for(|view| view.complete)).await;
    let Ok(Ok(listed)) = listed.map(|listed| listed.map(|view| view.clone())) else {
        bail!("not everything can be listed: {}", view.borrow().problems.join("; "));
    };
    let mut findings = listed.findings.to_vec();
    let unread = unread(&client, &settings).await?;
    let told = unread.iter().filter(|document| document.object.is_some());
    let objects = listed.documents + told.count();
    findings.extend(unread.into_iter().flat_map(|document| document.findings));
    findings.sort_by(|a, b| {
        (&a.object, std::cmp::Reverse(a.severity), &a.field).cmp(&(
            &b.object,
            std::cmp::Reverse(b.severity),
            &b.field,
        ))
    });
    Ok(Read { objects, findings })
}

/// The objects of kinds that no agent reads, and that would narrow access.
async fn unread(client: &Client, settings: &Settings) -> anyhow::Result<Vec<Document>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definitions = definitions.list(&ListParams::default()).await;
    let mut unread = Vec::new();
    for definition in definitions.context("CustomResourceDefinitions")?.items {
        let spec = definition.spec;
        let Some(version) = spec.versions.iter().find(|version| version.served) else { continue };
        let resource = ApiResource {
            api_version: format!("{}/{}", spec.group, version.name),
            group: spec.group.clone(),
            version: version.name.clone(),
            kind: spec.names.kind.clone(),
            plural: spec.names.plural.clone(),
        };
        let read = |namespace: Option<&str>, name: &str| {
            let metadata = json!({ "namespace": namespace, "name": name });
            let object = json!({
                "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata,
            });
            read_object(settings, &object)
        };
        // What is said of any object of the kind.
        if read(None, "any").severity() != Some(Severity::Warning) {
            continue;
        }
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        match objects.list_metadata(&ListParams::default()).await {
            Ok(objects) => unread.extend(
                objects
                    .items
                    .into_iter()
                    .map(|object| read(object.namespace().as_deref(), &object.name_any())),
            ),
            Err(error) => {
                let name = definition.metadata.name.unwrap_or_default();
                let reason = format!("{name}: not enforced, and cannot be listed: {error}");
                let finding = Finding {
                    severity: Severity::Warning,
                    object: None,
                    field: "".into(),
                    reason,
                    location: None,
                };
                unread.push(Document { findings: vec![finding], ..Document::default() });
            }
        }
    }
    Ok(unread)
}
