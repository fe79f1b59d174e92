//! Which service accounts have a pod on which node.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{ListParams, ObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Deserialize;
use tokio::sync::watch;

use super::caller::{Caller, Refusal, ServiceAccount};

/// As much of a pod as matters here.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Placement {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PlacementSpec,
    #[serde(default)]
    status: PlacementStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PlacementSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PlacementStatus {
    phase: Option<String>,
}

impl Resource for Placement {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Placement {
    /// The node and the account, while the pod has a node and has not ended.
    fn place(&self) -> Option<Place> {
        let ended = matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let node = self.spec.node_name.as_deref().filter(|node| !node.is_empty() && !ended)?;
        Some(Place {
            node: node.into(),
            namespace: self.metadata.namespace.as_deref().unwrap_or_default().into(),
            account: self.spec.service_account_name.as_deref().unwrap_or("default").into(),
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    node: Arc<str>,
    namespace: Arc<str>,
    account: Arc<str>,
}

/// Pods by uid, and how many a place has.
#[derive(Debug, Default)]
pub(super) struct Places {
    pods: BTreeMap<String, Place>,
    counts: HashMap<Place, usize>,
}

impl Places {
    pub(super) fn set(&mut self, pod: &Placement) {
        let uid = pod.uid().unwrap_or_default();
        self.forget(&uid);
        if let Some(place) = pod.place() {
            *self.counts.entry(place.clone()).or_default() += 1;
            self.pods.insert(uid, place);
        }
    }

    pub(super) fn forget(&mut self, uid: &str) {
        let Some(place) = self.pods.remove(uid) else { return };
        if let Some(count) = self.counts.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&place);
            }
        }
    }

    pub(super) fn has(&self, node: &str, account: &ServiceAccount) -> bool {
        self.counts.contains_key(&Place {
            node: node.into(),
            namespace: account.namespace.as_str().into(),
            account: account.name.as_str().into(),
        })
    }
}

/// The pods of the cluster, followed, and asked for where the watch may be behind.
#[derive(Clone)]
pub struct Pods {
    client: Client,
    places: Arc<RwLock<Places>>,
    synced: watch::Receiver<bool>,
}

impl Pods {
    /// Follows the cluster's pods in a task of its own, for as long as somebody has the result.
    pub fn follow(client: Client) -> Self {
        let places: Arc<RwLock<Places>> = Arc::default();
        let (sender, synced) = watch::channel(false);
        tokio::spawn(follow(client.clone(), places.clone(), sender));
        Self { client, places, synced }
    }

    /// Until the first complete list is there.
    pub async fn synced(&self) {
        // It fails only where the task has gone, which the direct question makes good.
        drop(self.synced.clone().wait_for(|synced| *synced).await);
    }

    /// The node of a caller's pod.
    ///
    /// # Errors
    /// Where the pod is not there any more, or has no node, or the API server cannot be asked.
    pub async fn node_of(&self, caller: &Caller) -> Result<String, Refusal> {
        if let Some(node) = &caller.node {
            return Ok(node.clone());
        }
        let namespace = &caller.account.namespace;
        let pods: Api<Placement> = Api::namespaced(self.client.clone(), namespace);
        let name = format!("{namespace}/{}", caller.pod);
        let found = pods.get_opt(&caller.pod).await.map_err(|error| {
            Refusal::unavailable(format!(
                "the API server could not be asked for Pod {name}: {error}"
            ))
        })?;
        match found {
            Some(pod) if pod.uid().as_ref() == Some(&caller.pod_uid) => {
                pod.spec.node_name.ok_or_else(|| {
                    Refusal::denied(format!("Pod {name}, which the token is bound to, has no node"))
                })
            }
            _ => Err(Refusal::unauthenticated(format!(
                "Pod {name} with uid {}, which the token is bound to, is not there any more",
                caller.pod_uid
            ))),
        }
    }

    /// Whether an account has a pod on a node: `Some(true)` where the API server had to be asked,
    /// for a pod may be there that the watch has not brought yet.
    ///
    /// # Errors
    /// Where the API server cannot be asked.
    pub async fn has(&self, node: &str, account: &ServiceAccount) -> Result<Found, Refusal> {
        if self.places.read().unwrap_or_else(PoisonError::into_inner).has(node, account) {
            return Ok(Found::Known);
        }
        // Both are names that the API server checked or `SpiffeId::read` did: no selector syntax.
        let selector = format!("spec.nodeName={node},spec.serviceAccountName={}", account.name);
        let pods: Api<Placement> = Api::namespaced(self.client.clone(), &account.namespace);
        let listed =
            pods.list(&ListParams::default().fields(&selector)).await.map_err(|error| {
                Refusal::unavailable(format!(
                    "the API server could not be asked for the pods of {account} on the node \
                     {node}: {error}"
                ))
            })?;
        let mut direct = Places::default();
        for pod in &listed.items {
            direct.set(pod);
        }
        Ok(if direct.has(node, account) { Found::Asked } else { Found::Nowhere })
    }
}

/// Whether a pod was found, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The watch has it.
    Known,
    /// The API server has it.
    Asked,
    /// There is none.
    Nowhere,
}

async fn follow(client: Client, places: Arc<RwLock<Places>>, synced: watch::Sender<bool>) {
    let pods: Api<Placement> = Api::all(client);
    let events = watcher(pods, watcher::Config::default()).default_backoff();
    let mut events = pin!(events);
    let mut listed = Places::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = synced.closed() => return,
        };
        let mut places = places.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Some(Ok(Event::Apply(pod))) => places.set(&pod),
            Some(Ok(Event::Delete(pod))) => places.forget(&pod.uid().unwrap_or_default()),
            Some(Ok(Event::Init)) => listed = Places::default(),
            Some(Ok(Event::InitApply(pod))) => listed.set(&pod),
            Some(Ok(Event::InitDone)) => {
                *places = std::mem::take(&mut listed);
                tracing::debug!(pods = places.pods.len(), "have all pods");
                synced.send_replace(true);
            }
            Some(Err(error)) => tracing::warn!(%error, "pods cannot be watched; trying again"),
            None => return,
        }
    }
}
