//! Follows the objects that users write, and how many nodes have an agent.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join, join_all};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, api::DynamicObject};
use serde_json::Value;
use tokio::sync::mpsc;
use weft_model::dialect::{Document, read_object};
use weft_model::mesh::{ObjectRef, ObjectVersion, Resource, Settings};

use super::LeaderSettings;
use super::board::Change;
use super::kinds::{Kind, kinds};
use crate::source::keep_fixed;

/// Between looks for a kind that is not installed.
const NOT_INSTALLED: Duration = Duration::from_secs(5);

/// What a watch shows.
#[derive(Debug)]
pub(super) enum Observed {
    Object(Box<Change>, Document),
    Gone(ObjectRef),
    /// All objects of a kind that there are, each of which was observed before.
    Listed(String, BTreeSet<ObjectRef>),
    /// How many nodes should have an agent; none if that is not known.
    Nodes(Option<usize>),
}

/// Follows for as long as it is polled, and `observed` is read.
pub(super) async fn watch(
    client: Client,
    settings: &LeaderSettings,
    observed: mpsc::Sender<Observed>,
) {
    let objects = kinds()
        .iter()
        .map(|kind| follow(client.clone(), kind, settings.mesh.clone(), observed.clone()));
    let (namespace, name) = &settings.agents;
    let nodes = nodes(Api::namespaced(client.clone(), namespace), name, observed.clone());
    join(join_all(objects), nodes).await;
}

/// Follows a kind in the first of its versions that the server has.
async fn follow(client: Client, kind: &Kind, settings: Settings, observed: mpsc::Sender<Observed>) {
    let mut is_absent = false;
    loop {
        for resource in &kind.resources {
            let api = Api::all_with(client.clone(), resource);
            match follow_version(api, resource, kind, &settings, &observed).await {
                Ended::Unheard => return,
                Ended::NotServed { listed } => is_absent &= !listed,
            }
        }
        // The definition is not installed, or was removed with all its objects.
        if !is_absent {
            is_absent = true;
            let none = Observed::Listed(kind.name().to_owned(), BTreeSet::new());
            if observed.send(none).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(NOT_INSTALLED).await;
    }
}

/// Why a version is followed no longer.
enum Ended {
    /// Nobody listens.
    Unheard,
    /// The server does not have it, or no longer.
    NotServed {
        /// Whether it had it.
        listed: bool,
    },
}

async fn follow_version(
    api: Api<DynamicObject>,
    resource: &ApiResource,
    kind: &Kind,
    settings: &Settings,
    observed: &mpsc::Sender<Observed>,
) -> Ended {
    let mut stream = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listed = BTreeSet::new();
    let mut was_listed = false;
    let change = |object| change(kind, resource, settings, object);
    while let Some(event) = stream.next().await {
        let seen = match event {
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                let Some((change, document)) = change(object) else { continue };
                listed.insert(change.object.clone());
                Observed::Object(Box::new(change), document)
            }
            Ok(Event::InitDone) => {
                was_listed = true;
                Observed::Listed(resource.kind.clone(), std::mem::take(&mut listed))
            }
            Ok(Event::Apply(object)) => match change(object) {
                Some((change, document)) => Observed::Object(Box::new(change), document),
                None => continue,
            },
            Ok(Event::Delete(object)) => match change(object) {
                Some((change, _)) => Observed::Gone(change.object),
                None => continue,
            },
            Err(error) if is_not_installed(&error) => {
                return Ended::NotServed { listed: was_listed };
            }
            Err(error) => {
                tracing::warn!(kind = resource.kind, %error, "objects cannot be followed");
                continue;
            }
        };
        if observed.send(seen).await.is_err() {
            return Ended::Unheard;
        }
    }
    Ended::Unheard
}

fn is_not_installed(error: &watcher::Error) -> bool {
    let source = match error {
        watcher::Error::InitialListFailed(source) | watcher::Error::WatchStartFailed(source) => {
            source
        }
        _ => return false,
    };
    matches!(source, kube::Error::Api(status) if status.code == 404)
}

/// An object, read as the agents read it.
fn change(
    kind: &Kind,
    resource: &ApiResource,
    settings: &Settings,
    object: DynamicObject,
) -> Option<(Change, Document)> {
    let uid = object.metadata.uid.clone()?;
    let generation = object.metadata.generation.unwrap_or_default();
    let mut value = serde_json::to_value(object).ok()?;
    if let Value::Object(fields) = &mut value {
        // What a list leaves out, for all its items have it.
        fields.insert("apiVersion".to_owned(), resource.api_version.as_str().into());
        fields.insert("kind".to_owned(), resource.kind.as_str().into());
    }
    let document = read_object(settings, &value);
    let mut findings = document.findings.clone();
    for resource in &document.resources {
        if let Resource::Settings(said) = resource {
            let object = document.object.as_ref();
            findings.extend(keep_fixed(settings, &mut settings.with(said), object));
        }
    }
    let status = kind.is_own.then(|| {
        let status = value.get("status").cloned().unwrap_or_default();
        serde_json::from_value(status).unwrap_or_default()
    });
    let change = Change {
        object: document.object.clone()?,
        api_version: resource.api_version.as_str().into(),
        version: ObjectVersion { uid: uid.into(), generation },
        findings,
        status,
    };
    Some((change, document))
}

/// Follows how many nodes the agents' DaemonSet is for.
async fn nodes(api: Api<DaemonSet>, name: &str, observed: mpsc::Sender<Observed>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let wanted = |set: &DaemonSet| {
        let status = set.status.as_ref()?;
        usize::try_from(status.desired_number_scheduled).ok()
    };
    let mut stream = pin!(watcher(api, config).default_backoff());
    loop {
        let expected = match stream.next().await {
            Some(Ok(Event::Apply(set) | Event::InitApply(set))) => wanted(&set),
            Some(Ok(Event::Delete(_))) => None,
            Some(Ok(Event::Init | Event::InitDone)) => continue,
            Some(Err(error)) => {
                tracing::warn!(name, %error, "the agents' DaemonSet cannot be followed");
                continue;
            }
            None => return,
        };
        if observed.send(Observed::Nodes(expected)).await.is_err() {
            return;
        }
    }
}
