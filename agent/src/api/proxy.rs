//! Configuration for the node's proxy.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use itertools::Itertools;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_model::mesh::{Mesh, Node, Pod};
use weft_proto::v1::proxy_config_server::ProxyConfig;
use weft_proto::v1::{Certificate, ProxySettings, Update, WatchRequest, Workload};

use crate::ca::Issued;
use crate::identity::SpiffeId;

/// Workloads in one message: well below gRPC's limit of 4 MiB.
const CHUNK: usize = 2000;

/// Everything that the proxy is to know.
#[derive(Clone, Debug, Default)]
pub struct ProxyState {
    settings: ProxySettings,
    /// None before the first policy has been applied.
    workloads: Option<Workloads>,
    certificates: BTreeMap<SpiffeId, Arc<Certificate>>,
    trust_roots: Vec<u8>,
}

/// The pods of a mesh, as a proxy is told of them.
#[derive(Clone, Debug)]
struct Workloads {
    mesh: Arc<Mesh>,
    /// The node of the proxy.
    node: Arc<str>,
    /// By node: where tunnels to its pods end.
    tunnels: BTreeMap<Arc<str>, Vec<String>>,
}

/// The ports at which every node's proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPorts {
    /// For the node's own pods.
    pub outbound: u16,
    /// For tunnels of other nodes.
    pub inbound: u16,
}

impl ProxyState {
    /// With the trusted roots, in PEM (empty: not known yet), and nothing else yet.
    pub fn new(root_pem: &str) -> Self {
        Self { trust_roots: root_pem.as_bytes().to_vec(), ..Self::default() }
    }

    /// Takes over what the mesh says. `nodes` are as they are declared: at those addresses proxies
    /// listen.
    pub fn set_mesh(
        &mut self,
        mesh: &Arc<Mesh>,
        nodes: &BTreeMap<Arc<str>, Node>,
        node: &str,
        ports: ProxyPorts,
    ) {
        let own = nodes.get(node);
        self.settings = ProxySettings {
            node: node.to_owned(),
            trust_domain: mesh.settings.trust_domain.to_string(),
            outbound: own.map(|own| listeners(own, ports.outbound)).unwrap_or_default(),
            inbound: own.map(|own| listeners(own, ports.inbound)).unwrap_or_default(),
        };
        let tunnels =
            nodes.iter().map(|(name, node)| (name.clone(), listeners(node, ports.inbound)));
        self.workloads =
            Some(Workloads { mesh: mesh.clone(), node: node.into(), tunnels: tunnels.collect() });
    }

    /// Takes over certificates, and the roots that go with them.
    pub fn set_certificates(&mut self, issued: &Issued) {
        if !issued.roots_pem.is_empty() && self.trust_roots != issued.roots_pem.as_bytes() {
            self.trust_roots = issued.roots_pem.as_bytes().to_vec();
        }
        let mut certificates = BTreeMap::new();
        for (identity, issued) in &issued.certificates {
            let certificate = Certificate {
                identity: identity.to_string(),
                chain: issued.chain.clone(),
                key: issued.key.clone(),
            };
            let kept =
                self.certificates.get(identity).filter(|known| ***known == certificate).cloned();
            certificates.insert(identity.clone(), kept.unwrap_or_else(|| Arc::new(certificate)));
        }
        self.certificates = certificates;
    }

    /// What brings a proxy that knows `last` (nothing, at first) to this state. Nothing where
    /// nothing has changed.
    pub fn updates_since(&self, last: Option<&Self>) -> impl Iterator<Item = Update> {
        let nothing = Self::default();
        let first = last.is_none();
        let last = last.unwrap_or(&nothing);

        let mut update = Update::default();
        if first || self.settings != last.settings {
            update.settings = Some(self.settings.clone());
        }
        if !self.trust_roots.is_empty() && (first || self.trust_roots != last.trust_roots) {
            update.trust_roots = vec![self.trust_roots.clone()];
        }
        update.removed_certificates = removed(&last.certificates, &self.certificates);
        update.certificates = changed(&last.certificates, &self.certificates);
        let mut changed = Vec::new();
        if let Some(workloads) = &self.workloads {
            (changed, update.removed_workloads) = workloads.changes_since(last.workloads.as_ref());
        }
        let messages = match first || !changed.is_empty() || update != Update::default() {
            true => changed.len().div_ceil(CHUNK).max(1),
            false => 0,
        };
        let mut changed = changed.into_iter();
        (1..=messages).map(move |number| {
            let chunk = changed.by_ref().take(CHUNK);
            Update {
                workloads: chunk
                    .filter_map(|pod| Some(self.workloads.as_ref()?.workload(pod)))
                    .collect(),
                synced: number == messages,
                ..std::mem::take(&mut update)
            }
        })
    }
}

impl Workloads {
    /// Which pods are to be told of anew, and the keys of those that are no longer there.
    fn changes_since(&self, last: Option<&Self>) -> (Vec<&Arc<Pod>>, Vec<String>) {
        let Some(last) = last else {
            let all = self.mesh.pods.values();
            return (all.filter(|pod| self.mesh.is_enrolled(pod)).collect(), Vec::new());
        };
        let alike = self.tells_as(last);
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        let by_name = |old: &&Arc<Pod>, new: &&Arc<Pod>| old.name.cmp(&new.name);
        let pods = last.mesh.pods.values().merge_join_by(self.mesh.pods.values(), by_name);
        for pod in pods {
            let (old, new) = pod.left_and_right();
            if alike && old == new {
                continue;
            }
            let old = old.filter(|pod| last.mesh.is_enrolled(pod));
            let new = new.filter(|pod| self.mesh.is_enrolled(pod));
            match (old, new) {
                (None, Some(new)) => changed.push(new),
                (Some(old), Some(new)) if last.workload(old) != self.workload(new) => {
                    changed.push(new);
                }
                (Some(old), None) => removed.push(old.name.to_string()),
                _ => {}
            }
        }
        (changed, removed)
    }

    /// Whether the same pod is told of in the same way as by `other`.
    fn tells_as(&self, other: &Self) -> bool {
        self.node == other.node
            && self.tunnels == other.tunnels
            && self.mesh.settings == other.mesh.settings
            && self.mesh.namespaces == other.mesh.namespaces
    }

    fn workload(&self, pod: &Pod) -> Workload {
        Workload {
            key: pod.name.to_string(),
            addresses: pod.addresses.iter().map(ToString::to_string).collect(),
            identity: self.mesh.identity(pod),
            node: pod.node.to_string(),
            tunnels: self.tunnels.get(&pod.node).cloned().unwrap_or_default(),
            local: pod.node == self.node,
        }
    }
}

fn listeners(node: &Node, port: u16) -> Vec<String> {
    let first =
        |wanted: fn(&IpAddr) -> bool| node.addresses.iter().map(IpAddr::to_canonical).find(wanted);
    [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)]
        .into_iter()
        .flatten()
        .map(|address| SocketAddr::new(address, port).to_string())
        .collect()
}

fn changed<K: Ord, V: Clone + PartialEq>(
    last: &BTreeMap<K, Arc<V>>,
    now: &BTreeMap<K, Arc<V>>,
) -> Vec<V> {
    let changed = now.iter().filter(|(key, new)| last.get(key) != Some(new));
    changed.map(|(_, new)| (**new).clone()).collect()
}

fn removed<K: Ord + ToString, V>(last: &BTreeMap<K, V>, now: &BTreeMap<K, V>) -> Vec<String> {
    last.keys().filter(|key| !now.contains_key(key)).map(ToString::to_string).collect()
}

/// The service.
#[derive(Clone)]
pub struct ProxyService {
    state: watch::Receiver<Arc<ProxyState>>,
    connected: Arc<AtomicUsize>,
}

impl ProxyService {
    /// Serves `state`.
    pub fn new(state: watch::Receiver<Arc<ProxyState>>) -> Self {
        Self { state, connected: Arc::default() }
    }

    /// How many proxies watch.
    pub fn connected(&self) -> Arc<AtomicUsize> {
        self.connected.clone()
    }
}

type UpdateStream = Pin<Box<dyn Stream<Item = Result<Update, Status>> + Send>>;

#[tonic::async_trait]
impl ProxyConfig for ProxyService {
    type WatchStream = UpdateStream;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<UpdateStream>, Status> {
        let version = request.into_inner().version;
        let (sender, receiver) = mpsc::channel(8);
        let state = self.state.clone();
        let connected = self.connected.clone();
        tokio::spawn(async move {
            connected.fetch_add(1, Ordering::Relaxed);
            tracing::info!(version, "the proxy watches its configuration");
            follow(state, sender).await;
            connected.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("the proxy no longer watches its configuration");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

async fn follow(
    mut state: watch::Receiver<Arc<ProxyState>>,
    sender: mpsc::Sender<Result<Update, Status>>,
) {
    let mut last: Option<Arc<ProxyState>> = None;
    loop {
        let now = state.borrow_and_update().clone();
        if now.workloads.is_some() {
            for update in now.updates_since(last.as_deref()) {
                if sender.send(Ok(update)).await.is_err() {
                    return;
                }
            }
            last = Some(now);
        }
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sender.closed() => return,
        }
    }
}
