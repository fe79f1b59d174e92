//! The trusted roots in every namespace: a ConfigMap that only differences are written to.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PartialObjectMeta, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::root::{FIELD_MANAGER, MADE_BY};

/// Name of the ConfigMap, unless told otherwise.
pub const TRUST_BUNDLE: &str = "weft-trust-bundle";
/// Its key.
pub const KEY: &str = "ca.crt";
/// Writes at once.
const AT_ONCE: usize = 8;
/// A ConfigMap that somebody else keeps changing, or that cannot be written, is written again after
/// this time, then later and later.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);
/// One that has been left alone for this long is written at once again.
const CALM: Duration = Duration::from_secs(600);

/// What is where, and what is to be written when.
#[derive(Default)]
pub(super) struct Published {
    namespaces: BTreeSet<String>,
    /// Content of the ConfigMap by namespace.
    found: BTreeMap<String, Arc<str>>,
    /// Last write by namespace, and the pause before the next.
    written: BTreeMap<String, (Instant, Duration)>,
    writing: BTreeSet<String>,
}

impl Published {
    pub(super) fn namespace(&mut self, name: String, there: bool) {
        if there {
            self.namespaces.insert(name);
        } else {
            self.namespaces.remove(&name);
            self.found.remove(&name);
            self.written.remove(&name);
        }
    }

    pub(super) fn found(&mut self, namespace: String, content: Option<Arc<str>>) {
        match content {
            Some(content) => self.found.insert(namespace, content),
            None => self.found.remove(&namespace),
        };
    }

    /// A namespace to write to now, or when there will be one.
    pub(super) fn next(&mut self, bundle: &str, now: Instant) -> Result<String, Option<Instant>> {
        let mut soonest: Option<Instant> = None;
        for namespace in &self.namespaces {
            let right = self.found.get(namespace).is_some_and(|found| **found == *bundle);
            if right || self.writing.contains(namespace) {
                continue;
            }
            let due = match self.written.get(namespace) {
                Some((last, pause)) => *last + *pause,
                None => now,
            };
            if due <= now {
                let pause = match self.written.get(namespace) {
                    Some((last, pause)) if now < *last + CALM.max(*pause * 2) => {
                        (*pause * 2).min(LAST_RETRY)
                    }
                    _ => FIRST_RETRY,
                };
                let namespace = namespace.clone();
                self.written.insert(namespace.clone(), (now, pause));
                self.writing.insert(namespace.clone());
                return Ok(namespace);
            }
            soonest = Some(soonest.map_or(due, |soonest| soonest.min(due)));
        }
        Err(soonest)
    }

    pub(super) fn wrote(&mut self, namespace: &str, content: Option<Arc<str>>) {
        self.writing.remove(namespace);
        if content.is_some() && self.namespaces.contains(namespace) {
            self.found(namespace.to_owned(), content);
        }
    }
}

/// Publishes `bundle`, for ever.
pub async fn publish(client: Client, name: String, mut bundle: watch::Receiver<Arc<str>>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let mut maps = pin!(watcher(maps, only).default_backoff());
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut namespaces = pin!(watcher(namespaces, watcher::Config::default()).default_backoff());
    let mut published = Published::default();
    let mut listed_maps = BTreeMap::new();
    let mut listed_namespaces = BTreeSet::new();
    // Before both lists are complete, everything would be written.
    let (mut have_maps, mut have_namespaces) = (false, false);
    let mut writes = JoinSet::new();
    loop {
        let now = Instant::now();
        let content = bundle.borrow_and_update().clone();
        let mut wake = None;
        while have_maps && have_namespaces && writes.len() < AT_ONCE {
            match published.next(&content, now) {
                Ok(namespace) => {
                    let (client, name, content) = (client.clone(), name.clone(), content.clone());
                    writes.spawn(async move {
                        let result = write(&client, &namespace, &name, &content).await;
                        (namespace, content, result)
                    });
                }
                Err(later) => {
                    wake = later;
                    break;
                }
            }
        }
        tokio::select! {
            changed = bundle.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            event = maps.next() => match event {
                Some(Ok(Event::Apply(map))) => published.found(place(&map), content_of(&map)),
                Some(Ok(Event::Delete(map))) => published.found(place(&map), None),
                Some(Ok(Event::Init)) => listed_maps.clear(),
                Some(Ok(Event::InitApply(map))) => {
                    if let Some(content) = content_of(&map) {
                        listed_maps.insert(place(&map), content);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    published.found = std::mem::take(&mut listed_maps);
                    have_maps = true;
                }
                Some(Err(error)) => tracing::warn!(%error, "ConfigMaps cannot be watched"),
                None => return,
            },
            event = namespaces.next() => match event {
                Some(Ok(Event::Apply(namespace))) => {
                    let there = namespace.metadata.deletion_timestamp.is_none();
                    published.namespace(namespace.name_any(), there);
                }
                Some(Ok(Event::Delete(namespace))) => {
                    published.namespace(namespace.name_any(), false);
                }
                Some(Ok(Event::Init)) => listed_namespaces.clear(),
                Some(Ok(Event::InitApply(namespace))) => {
                    if namespace.metadata.deletion_timestamp.is_none() {
                        listed_namespaces.insert(namespace.name_any());
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    published.namespaces = std::mem::take(&mut listed_namespaces);
                    have_namespaces = true;
                }
                Some(Err(error)) => tracing::warn!(%error, "Namespaces cannot be watched"),
                None => return,
            },
            Some(wrote) = writes.join_next() => {
                let Ok((namespace, content, result)) = wrote else { continue };
                match result {
                    Ok(()) => {
                        tracing::info!(namespace, name, "published the trusted roots");
                        published.wrote(&namespace, Some(content));
                    }
                    Err(error) => {
                        tracing::warn!(namespace, name, %error, "cannot publish the trusted roots");
                        published.wrote(&namespace, None);
                    }
                }
            }
            () = later(wake) => {}
        }
    }
}

async fn later(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

fn place(map: &ConfigMap) -> String {
    map.namespace().unwrap_or_default()
}

fn content_of(map: &ConfigMap) -> Option<Arc<str>> {
    map.data.as_ref()?.get(KEY).map(|content| content.as_str().into())
}

async fn write(
    client: &Client,
    namespace: &str,
    name: &str,
    content: &str,
) -> Result<(), kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([(MADE_BY.to_owned(), FIELD_MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), content.to_owned())])),
        ..ConfigMap::default()
    };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(name, &params, &Patch::Apply(&map)).await.map(drop)
}
