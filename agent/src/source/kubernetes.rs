//! A Kubernetes API server. All objects that the mesh is made of are followed; what they say is
//! published once every kind has been listed, and then with every change.
//!
//! While the server cannot be reached, what is known stays. An object is taken for gone only
//! where the server says so, or where a complete list does not have it.

mod follow;
mod kinds;
mod object;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use weft_model::dialect::Finding;
use weft_model::mesh::{Mesh, Name, Settings};

use super::{FindingsLog, View, keep_fixed};
use follow::{Change, Message};
use kinds::{KINDS, Kind};
use state::{Effect, State};

/// From a change to publishing it: several objects are often written together.
const SETTLED: Duration = Duration::from_millis(5);
/// Between two publications, where change follows on change.
const BETWEEN: Duration = Duration::from_millis(50);
/// How long a list that is under way holds back the changes that it brings, so that policies
/// which belong together come together.
const LISTING: Duration = Duration::from_secs(5);
/// Until a server that does not answer is taken for gone.
const CONNECT: Duration = Duration::from_secs(5);
/// Changes that wait to be taken.
const PENDING: usize = 1024;

/// Why an API server cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// The kubeconfig cannot be read.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// There is no service account to be found.
    #[error(
        "this is no pod of a cluster ({0}): say where manifests come from with --kubeconfig FILE \
         or --manifests DIR"
    )]
    NotInCluster(#[source] Box<InClusterError>),
    /// The client cannot be made.
    #[error("the API server's client: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// The objects of an API server.
pub struct Cluster {
    client: Client,
    url: String,
    settings: Settings,
}

impl Cluster {
    /// The server that a kubeconfig's current context names, or the one of the cluster whose pod
    /// this is. Nothing is asked of it yet.
    ///
    /// # Errors
    /// Where the kubeconfig or the pod's service account cannot be read.
    pub async fn new(kubeconfig: Option<&Path>, settings: Settings) -> Result<Self, ClusterError> {
        let config = match kubeconfig {
            Some(path) => {
                let failed = |source| ClusterError::Kubeconfig {
                    path: path.to_owned(),
                    source: Box::new(source),
                };
                let read = Kubeconfig::read_from(path).map_err(failed)?;
                kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                    .await
                    .map_err(failed)?
            }
            None => kube::Config::incluster()
                .map_err(|error| ClusterError::NotInCluster(Box::new(error)))?,
        };
        Self::of(config, settings)
    }

    /// The server of a configuration.
    ///
    /// # Errors
    /// Where the client cannot be made.
    pub fn of(mut config: kube::Config, settings: Settings) -> Result<Self, ClusterError> {
        config.connect_timeout = Some(CONNECT);
        let url = config.cluster_url.to_string();
        let client =
            Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self { client, url: url.trim_end_matches('/').to_owned(), settings })
    }

    /// A client of the same server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Follows the objects until the receiver is gone; to be called inside a tokio runtime. The
    /// receiver's values are incomplete until every kind has been listed.
    pub fn watch(self) -> watch::Receiver<View> {
        let (publish, receiver) = watch::channel(View {
            mesh: Arc::new(Mesh { settings: self.settings.clone(), ..Mesh::default() }),
            problems: [format!("{}: nothing is listed yet", self.url)].into(),
            complete: false,
            ..View::default()
        });
        let (sender, messages) = mpsc::channel(PENDING);
        let settings = Arc::new(self.settings.clone());
        let follower = Follower {
            state: State::new(self.settings),
            client: self.client,
            url: self.url,
            settings,
            sender,
            epoch: 0,
            definitions: Followed::default(),
            defined: BTreeSet::new(),
            kinds: BTreeMap::new(),
            changed: Effect::default(),
            left_out: Vec::new(),
            publish,
            published: None,
            log: FindingsLog::default(),
        };
        tokio::spawn(follower.run(messages));
        receiver
    }
}

/// How far a kind has been followed.
#[derive(Debug, Default)]
struct Followed {
    epoch: u64,
    /// Whether all of its objects have been listed once.
    complete: bool,
    /// What the list that is under way has brought, and since when.
    listing: Option<(HashSet<Name>, Option<Instant>)>,
    problem: Option<String>,
    task: Option<Task>,
}

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Follower {
    client: Client,
    url: String,
    settings: Arc<Settings>,
    state: State,
    sender: mpsc::Sender<Message>,
    epoch: u64,
    definitions: Followed,
    /// Custom kinds whose definition is there.
    defined: BTreeSet<&'static str>,
    kinds: BTreeMap<&'static str, Followed>,
    changed: Effect,
    /// What was last said of the mesh's settings.
    left_out: Vec<Finding>,
    publish: watch::Sender<View>,
    published: Option<Instant>,
    log: FindingsLog,
}

impl Follower {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let definitions = follow::definitions(self.client.clone(), self.sender.clone());
        self.definitions.task = Some(Task(tokio::spawn(definitions).abort_handle()));
        for kind in KINDS.iter().filter(|kind| !kind.custom) {
            self.follow(kind);
        }
        let mut due: Option<Instant> = None;
        loop {
            let message = tokio::select! {
                biased;
                () = until(due), if due.is_some() => None,
                message = messages.recv() => message,
                () = self.publish.closed() => return,
            };
            let dirty = match message {
                Some(message) => self.take(message),
                None => {
                    due = self.hold_back();
                    if due.is_none() {
                        self.publish();
                    }
                    continue;
                }
            };
            if dirty && due.is_none() {
                let now = Instant::now();
                let spaced = self.published.map_or(now, |last| last + BETWEEN);
                due = Some((now + SETTLED).max(spaced));
            }
        }
    }

    /// Follows a kind, again where it was followed before.
    fn follow(&mut self, kind: &'static Kind) {
        self.epoch += 1;
        let epoch = self.epoch;
        let client = self.client.clone();
        let (settings, sender) = (self.settings.clone(), self.sender.clone());
        let task = tokio::spawn(follow::objects(client, kind, epoch, settings, sender));
        let complete = self.kinds.get(kind.kind).is_some_and(|followed| followed.complete);
        let task = Some(Task(task.abort_handle()));
        let followed = Followed { epoch, complete, task, ..Followed::default() };
        self.kinds.insert(kind.kind, followed);
    }

    /// Takes note of a message. Returns whether there is something to publish.
    fn take(&mut self, message: Message) -> bool {
        let before = self.changed;
        let settled = match message {
            Message::Objects(kind, epoch, change) => {
                let Some(followed) = self.kinds.get_mut(kind.kind) else { return false };
                if followed.epoch != epoch {
                    return false;
                }
                let settled = followed.settle(&change);
                let effect = match change {
                    Change::Is(seen) => self.state.take(kind, *seen),
                    Change::Gone(name) => self.state.remove(kind, name),
                    Change::Complete => match followed.listing.take() {
                        Some((listed, _)) => self.state.retain(kind, &listed),
                        None => Effect::default(),
                    },
                    Change::Begin | Change::Failed(_) | Change::Works => Effect::default(),
                };
                self.changed.and(effect);
                settled
            }
            Message::Definitions(change) => {
                let settled = self.definitions.settle(&change);
                match change {
                    Change::Is(seen) => self.define(&seen.name.name),
                    Change::Gone(name) => self.undefine(&name.name),
                    Change::Complete => {
                        if let Some((listed, _)) = self.definitions.listing.take() {
                            self.undefine_all_but(&listed);
                        }
                    }
                    Change::Begin | Change::Failed(_) | Change::Works => {}
                }
                settled
            }
        };
        settled || self.changed != before
    }

    fn define(&mut self, definition: &str) {
        if let Some(kind) = Kind::defined_by(definition)
            && self.defined.insert(kind.kind)
        {
            tracing::info!(definition, "is installed; its objects are followed");
            self.follow(kind);
        }
    }

    fn undefine(&mut self, definition: &str) {
        if let Some(kind) = Kind::defined_by(definition)
            && self.defined.remove(kind.kind)
        {
            tracing::info!(definition, "is no longer installed, and its objects have gone");
            self.kinds.remove(kind.kind);
            let effect = self.state.retain(kind, &HashSet::new());
            self.changed.and(effect);
        }
    }

    fn undefine_all_but(&mut self, listed: &HashSet<Name>) {
        let gone: Vec<String> = KINDS
            .iter()
            .filter(|kind| self.defined.contains(kind.kind))
            .map(Kind::definition)
            .filter(|name| {
                let name = Name { namespace: "".into(), name: name.as_str().into() };
                !listed.contains(&name)
            })
            .collect();
        for definition in gone {
            self.undefine(&definition);
        }
    }

    /// Until when changes are held back for a list that is under way.
    fn hold_back(&self) -> Option<Instant> {
        let now = Instant::now();
        self.kinds
            .values()
            .filter_map(|followed| Some(followed.listing.as_ref()?.1? + LISTING))
            .filter(|until| *until > now)
            .min()
            .map(|until| until.min(now + BETWEEN))
    }

    fn publish(&mut self) {
        let problems = self.problems();
        let complete =
            self.definitions.complete && self.kinds.values().all(|followed| followed.complete);
        // What has been published once as a whole stays so, also while a new kind is listed.
        let complete = complete || self.publish.borrow().complete;
        let was = self.publish.borrow().clone();
        let mut changed = std::mem::take(&mut self.changed);
        let mut mesh = was.mesh;
        if complete && (changed.mesh || !was.complete) {
            let mut settled = self.state.mesh.clone();
            let left_out = self.settle(&mut settled);
            changed.findings |= left_out != self.left_out;
            self.left_out = left_out;
            mesh = Arc::new(settled);
        }
        let findings = match changed.findings {
            true => self.state.findings(&self.left_out),
            false => was.findings,
        };
        if complete {
            self.log.update(&findings);
        }
        if problems != *was.problems {
            for problem in problems.iter().filter(|problem| !was.problems.contains(problem)) {
                tracing::warn!("{problem}");
            }
        }
        if complete && !was.complete {
            tracing::info!(
                server = self.url,
                objects = self.state.objects(),
                "every kind has been listed",
            );
        }
        if !complete {
            // Nothing of it has been published.
            self.changed = changed;
        }
        self.publish.send_replace(View {
            mesh,
            findings,
            problems: problems.into(),
            documents: self.state.objects(),
            complete,
        });
        self.published = Some(Instant::now());
    }

    /// Puts in force what the MeshSettings say, as far as a running agent can take it.
    fn settle(&self, mesh: &mut Mesh) -> Vec<Finding> {
        let object = mesh.settings_objects.keys().next().cloned();
        let mut findings = mesh.settle();
        findings.extend(keep_fixed(&self.settings, &mut mesh.settings, object.as_ref()));
        findings
    }

    /// What keeps kinds from being followed.
    fn problems(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut waiting = Vec::new();
        let custom = std::iter::once(("customresourcedefinitions".to_owned(), &self.definitions));
        let kinds = KINDS
            .iter()
            .filter_map(|kind| Some((kind.definition(), self.kinds.get(kind.kind)?)))
            .chain(custom);
        for (name, followed) in kinds {
            match &followed.problem {
                Some(problem) => by_reason.entry(problem).or_default().push(name),
                None if !followed.complete => waiting.push(name),
                None => {}
            }
        }
        let mut problems: Vec<String> = by_reason
            .into_iter()
            .map(|(reason, kinds)| {
                format!(
                    "{}: {reason}: {} cannot be followed; what was last known of them stays in \
                     force",
                    self.url,
                    kinds.join(", ")
                )
            })
            .collect();
        if !waiting.is_empty() {
            problems.push(format!("{}: waiting for the list of {}", self.url, waiting.join(", ")));
        }
        problems
    }
}

impl Followed {
    /// Takes note of a change. Returns whether that is worth telling.
    fn settle(&mut self, change: &Change) -> bool {
        let before = (self.problem.clone(), self.complete);
        match change {
            Change::Begin => {
                // Whoever begins anew within a list is held back no longer than the first.
                let since = self.listing.as_ref().and_then(|(_, since)| *since);
                self.listing = Some((HashSet::new(), Some(since.unwrap_or_else(Instant::now))));
                return false;
            }
            Change::Failed(error) => self.problem = Some(error.clone()),
            Change::Is(seen) => {
                self.problem = None;
                if let Some((listed, _)) = &mut self.listing {
                    listed.insert(seen.name.clone());
                }
            }
            Change::Complete => {
                self.problem = None;
                self.complete = true;
            }
            Change::Gone(_) | Change::Works => self.problem = None,
        }
        (self.problem.clone(), self.complete) != before
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
