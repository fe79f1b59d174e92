//! Following all objects of one kind.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::discovery::ApiResource;
use kube::runtime::watcher::{self, Event, InitialListStrategy, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use weft_model::dialect::{self, Document};
use weft_model::mesh::{Name, Settings};

use super::kinds::{Kind, OtherFields, PodFields};
use super::object::{Fields, Object};

/// Between tries, at first.
const SOONEST: Duration = Duration::from_millis(250);
/// Between tries, at last: a server that is back is noticed within this.
const LATEST: Duration = Duration::from_secs(5);
/// A watch that has not failed again for so long works. It need not have anything to say.
const SETTLED: Duration = Duration::from_secs(12);
/// How long one watch lasts, in seconds: a connection that has died without a word is noticed
/// at its end.
const WATCH_SECONDS: u32 = 120;

/// What becomes known of the objects of a kind.
#[derive(Debug)]
pub(super) enum Change {
    /// All are listed anew.
    Begin,
    /// One is as it says here.
    Is(Box<Seen>),
    /// One has gone.
    Gone(Name),
    /// All have been listed: what was not has gone.
    Complete,
    /// They cannot be followed, for now.
    Failed(String),
    /// They can again.
    Works,
}

/// An object that has been read.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub name: Name,
    pub document: Document,
}

/// A change, and what of.
#[derive(Debug)]
pub(super) enum Message {
    /// Of a kind's objects, which are followed for the how-manieth time.
    Objects(&'static Kind, u64, Change),
    /// Of the definitions of custom kinds.
    Definitions(Change),
}

/// Follows all objects of a kind for as long as somebody listens.
pub(super) async fn objects(
    client: Client,
    kind: &'static Kind,
    epoch: u64,
    settings: Arc<Settings>,
    messages: mpsc::Sender<Message>,
) {
    let Some(version) = served_version(&client, kind, epoch, &messages).await else { return };
    let following = Following { resource: kind.resource(version), kind, epoch, settings };
    if kind.kind == "Pod" {
        following.run::<PodFields>(client, &messages).await;
    } else {
        following.run::<OtherFields>(client, &messages).await;
    }
}

/// The first of a kind's versions that the server has: a definition may be served a moment after
/// it has been seen. None where nobody listens any more.
async fn served_version(
    client: &Client,
    kind: &'static Kind,
    epoch: u64,
    messages: &mpsc::Sender<Message>,
) -> Option<&'static str> {
    if !kind.custom {
        return kind.versions.first().copied();
    }
    let mut wait = SOONEST;
    loop {
        let mut refused = format!("version {} is not served", kind.versions.join(" or "));
        for version in kind.versions {
            let group_version = format!("{}/{version}", kind.group);
            match client.list_api_group_resources(&group_version).await {
                Ok(served) if served.resources.iter().any(|one| one.name == kind.plural) => {
                    return Some(version);
                }
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => refused = innermost(&error),
            }
        }
        let failed = Message::Objects(kind, epoch, Change::Failed(refused));
        if wait > SOONEST && messages.send(failed).await.is_err() {
            return None;
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LATEST);
    }
}

struct Following {
    resource: ApiResource,
    kind: &'static Kind,
    epoch: u64,
    settings: Arc<Settings>,
}

impl Following {
    async fn run<F: Fields>(&self, client: Client, messages: &mpsc::Sender<Message>) {
        let api: Api<Object<F>> = Api::all_with(client, &self.resource);
        let read = |object: Object<F>| self.read(object.into_value(&self.resource));
        watch(&api, messages, |watched| {
            let change = change(watched, read, |object| name_of(object.value()));
            Message::Objects(self.kind, self.epoch, change)
        })
        .await;
    }

    fn read(&self, value: Value) -> Seen {
        Seen { name: name_of(&value), document: dialect::read_object(&self.settings, &value) }
    }
}

/// Follows the definitions of custom kinds; only their names are read.
pub(super) async fn definitions(client: Client, messages: mpsc::Sender<Message>) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let name = |definition: &PartialObjectMeta<CustomResourceDefinition>| Name {
        namespace: "".into(),
        name: definition.metadata.name.as_deref().unwrap_or_default().into(),
    };
    let read = |definition: PartialObjectMeta<CustomResourceDefinition>| Seen {
        name: name(&definition),
        ..Seen::default()
    };
    watch(&api, &messages, |watched| Message::Definitions(change(watched, read, name))).await;
}

fn change<K>(watched: Watched<K>, read: impl Fn(K) -> Seen, name: impl Fn(&K) -> Name) -> Change {
    match watched {
        Watched::Event(Event::Init) => Change::Begin,
        Watched::Event(Event::InitDone) => Change::Complete,
        Watched::Event(Event::Apply(object) | Event::InitApply(object)) => {
            Change::Is(Box::new(read(object)))
        }
        Watched::Event(Event::Delete(object)) => Change::Gone(name(&object)),
        Watched::Failed(error) => Change::Failed(error),
        Watched::Works => Change::Works,
    }
}

fn name_of(value: &Value) -> Name {
    let text = |field: &str| {
        let metadata = value.get("metadata").and_then(|metadata| metadata.get(field));
        metadata.and_then(Value::as_str).unwrap_or_default()
    };
    Name { namespace: text("namespace").into(), name: text("name").into() }
}

enum Watched<K> {
    Event(Event<K>),
    Failed(String),
    Works,
}

/// Watches all objects for as long as somebody listens: streamed where the server does that,
/// and tried again later and later where it fails.
async fn watch<K>(
    api: &Api<K>,
    messages: &mpsc::Sender<Message>,
    message: impl Fn(Watched<K>) -> Message,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = |initial_list_strategy| {
        let timeout = Some(WATCH_SECONDS);
        let config =
            watcher::Config { initial_list_strategy, timeout, ..watcher::Config::default() };
        watcher(api.clone(), config).boxed()
    };
    let mut events = begin(InitialListStrategy::StreamingList);
    // Between the last failure and the next try, while there has been no success since.
    let mut wait: Option<Duration> = None;
    loop {
        let next = match wait {
            None => events.next().await,
            Some(_) => match tokio::time::timeout(SETTLED, events.next()).await {
                Ok(next) => next,
                Err(_quiet) => {
                    wait = None;
                    if messages.send(message(Watched::Works)).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        let watched = match next {
            None => return,
            Some(Ok(event)) => {
                // To begin anew is no success yet.
                if !matches!(event, Event::Init) {
                    wait = None;
                }
                Watched::Event(event)
            }
            Some(Err(error)) if lacks_streaming(&error) => {
                tracing::debug!(%error, "the API server does not stream lists: they are paged");
                events = begin(InitialListStrategy::ListWatch);
                continue;
            }
            // Nothing is amiss: the watch was too far behind, and all objects are listed anew.
            Some(Err(error)) if is_expired(&error) => continue,
            Some(Err(error)) => Watched::Failed(describe(&error)),
        };
        let failed = matches!(watched, Watched::Failed(_));
        if messages.send(message(watched)).await.is_err() {
            return;
        }
        if failed {
            let next = wait.map_or(SOONEST, |last| (last * 2).min(LATEST));
            tokio::time::sleep(jittered(next)).await;
            wait = Some(next);
        }
    }
}

/// Servers that do not stream lists refuse `sendInitialEvents` as invalid.
fn lacks_streaming(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
            if matches!(status.code, 400 | 422)
    )
}

fn is_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// The error's causes in a line, without what they repeat of each other.
fn describe(error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    if let Some(status) = status {
        return format!("{} ({})", status.message, status.code);
    }
    innermost(error)
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// A little more or less, for not all agents should come at once.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1024;
    wait.mul_f64(0.75 + random as f64 / 2048.0)
}
