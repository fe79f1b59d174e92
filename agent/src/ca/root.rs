//! The authority's root in a Secret: made on the first start, or brought by the user; followed, so
//! that whatever it becomes is used, and trusted before it is used.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::sleep;

use super::trust::Roots;
use super::{Authority, Material};

/// Who writes, for server-side apply.
pub(super) const FIELD_MANAGER: &str = "weft-ca";
/// Label of what is made here, with the same value. `weft uninstall` removes what has it: not a
/// root that was brought.
pub(super) const MADE_BY: &str = "app.kubernetes.io/managed-by";
/// Roots are looked over this often: whether one has ended, or its grace has.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure it is tried again this much later.
const RETRY: Duration = Duration::from_secs(5);

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
const HISTORY: &str = "roots.json";

/// Where the root is, and how it is changed.
#[derive(Clone, Debug)]
pub struct RootSettings {
    /// Namespace of both Secrets.
    pub namespace: String,
    /// The Secret with `tls.crt`, `tls.key` and `ca.crt`.
    pub secret: String,
    /// The Secret in which the trusted roots are remembered.
    pub history: String,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// How long certificates live.
    pub life: Duration,
    /// How long a new root is published before anything is issued below it.
    pub propagation: Duration,
    /// How long a root stays trusted after it is named no more.
    pub grace: Duration,
}

/// What the root is now.
#[derive(Clone)]
pub struct CurrentRoot {
    /// Who issues.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// All trusted roots, in PEM.
    pub bundle: watch::Receiver<Arc<str>>,
}

/// Keeps the root.
pub struct RootKeeper {
    secrets: Api<Secret>,
    settings: RootSettings,
    leading: watch::Receiver<bool>,
    roots: Roots,
    /// What the history's Secret holds.
    stored: Roots,
    /// The Secret's data that was read last.
    read: Option<BTreeMap<String, ByteString>>,
    named: Vec<Vec<u8>>,
    /// The root that the present authority's certificates end in.
    root: Vec<u8>,
    next: Option<Next>,
    authority: watch::Sender<Arc<Authority>>,
    bundle: watch::Sender<Arc<str>>,
}

struct Next {
    authority: Arc<Authority>,
    root: Vec<u8>,
    at: SystemTime,
}

impl RootKeeper {
    /// Reads the root, or makes it, whoever is first of several replicas.
    ///
    /// # Errors
    /// Where the API server refuses, or the Secret holds something else.
    pub async fn open(
        client: Client,
        settings: RootSettings,
        leading: watch::Receiver<bool>,
    ) -> anyhow::Result<(Self, CurrentRoot)> {
        let secrets: Api<Secret> = Api::namespaced(client, &settings.namespace);
        let stored = match secrets.get_opt(&settings.history).await? {
            Some(history) => read_history(&history)?,
            None => Roots::default(),
        };
        let secret = get_or_make(&secrets, &settings).await?;
        let data = secret.data.unwrap_or_default();
        let material = read(&data, &settings, SystemTime::now())
            .with_context(|| format!("Secret {}/{}", settings.namespace, settings.secret))?;
        let (named, root) = (material.roots.clone(), material.root.clone());
        let mut roots = stored.clone();
        roots.name(&named, SystemTime::now(), settings.grace);
        let authority = Arc::new(Authority::new(material, settings.life)?);
        let (authority, authority_receiver) = watch::channel(authority);
        let (bundle, bundle_receiver) = watch::channel(roots.pem().into());
        let current = CurrentRoot { authority: authority_receiver, bundle: bundle_receiver };
        tracing::info!(
            secret = settings.secret,
            roots = roots.len(),
            root = super::material::subject(&root),
            "have the root",
        );
        let keeper = Self {
            secrets,
            settings,
            leading,
            roots,
            stored,
            read: Some(data),
            named,
            root,
            next: None,
            authority,
            bundle,
        };
        Ok((keeper, current))
    }

    /// Follows both Secrets, for ever.
    pub async fn run(mut self) {
        let watch = |name: &str| {
            let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
            watcher(self.secrets.clone(), only).default_backoff().boxed()
        };
        let streams = [watch(&self.settings.secret), watch(&self.settings.history)];
        let mut events = pin!(futures::stream::select_all(streams));
        loop {
            let next = self.next.as_ref().map(|next| next.at);
            let due = next.into_iter().chain(self.roots.next_end(self.settings.grace)).min();
            let mut wait = due
                .map(|due| due.duration_since(SystemTime::now()).unwrap_or_default())
                .map_or(LOOK, |wait| wait.min(LOOK));
            let leads = *self.leading.borrow();
            if leads
                && self.roots != self.stored
                && let Err(error) = self.store().await
            {
                tracing::warn!(
                    secret = self.settings.history, %error, "cannot remember the trusted roots",
                );
                wait = wait.min(RETRY);
            }
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(event)) => self.take(event).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the root's Secret cannot be watched; trying again");
                    }
                    None => return,
                },
                () = sleep(wait) => {}
                changed = self.leading.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
            self.advance(SystemTime::now());
        }
    }

    async fn take(&mut self, event: Event<Secret>) {
        match event {
            Event::Apply(secret) | Event::InitApply(secret) => {
                if secret.name_any() == self.settings.history {
                    match read_history(&secret) {
                        Ok(history) => {
                            self.roots.merge(&history);
                            self.stored = history;
                        }
                        Err(error) => tracing::error!(error = format!("{error:#}"), "left out"),
                    }
                } else {
                    self.take_root(secret.data.unwrap_or_default());
                }
            }
            Event::Delete(secret) if secret.name_any() == self.settings.secret => {
                tracing::warn!(
                    secret = self.settings.secret,
                    "the root's Secret was deleted: a new root takes its place",
                );
                match get_or_make(&self.secrets, &self.settings).await {
                    Ok(secret) => self.take_root(secret.data.unwrap_or_default()),
                    Err(error) => tracing::error!(
                        error = format!("{error:#}"),
                        "no new root; the present one stays in use",
                    ),
                }
            }
            Event::Delete(_) => self.stored = Roots::default(),
            Event::Init | Event::InitDone => {}
        }
    }

    fn take_root(&mut self, data: BTreeMap<String, ByteString>) {
        if self.read.as_ref() == Some(&data) {
            return;
        }
        let now = SystemTime::now();
        let secret = self.settings.secret.clone();
        let made = read(&data, &self.settings, now).and_then(|material| {
            let (named, root) = (material.roots.clone(), material.root.clone());
            Ok((Arc::new(Authority::new(material, self.settings.life)?), named, root))
        });
        // Not looked at again before it changes, good or not.
        self.read = Some(data);
        let (authority, named, root) = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(
                    secret,
                    error = format!("{error:#}"),
                    "not usable; the present root stays in use",
                );
                return;
            }
        };
        self.named = named;
        self.roots.name(&self.named, now, self.settings.grace);
        let since = self.roots.since(&root).unwrap_or(now);
        let at = begin(&self.root, &root, since, self.settings.propagation);
        // An authority that ends before is of no use until then.
        let at = at.min(self.authority.borrow().not_after());
        let wait = at.duration_since(now).unwrap_or_default();
        tracing::info!(
            secret,
            root = super::material::subject(&root),
            seconds = wait.as_secs(),
            "the root's Secret has changed; what it holds issues after this time",
        );
        self.next = Some(Next { authority, root, at });
    }

    /// Does what is due.
    fn advance(&mut self, now: SystemTime) {
        self.roots.name(&self.named, now, self.settings.grace);
        let bundle: Arc<str> = self.roots.pem().into();
        self.bundle.send_if_modified(|known| {
            let changed = *known != bundle;
            *known = bundle;
            changed
        });
        if let Some(next) = self.next.take_if(|next| next.at <= now) {
            self.root = next.root;
            self.authority.send_replace(next.authority);
            tracing::info!(root = super::material::subject(&self.root), "issues below this root");
        }
    }

    async fn store(&mut self) -> Result<(), kube::Error> {
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.settings.history.clone()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(
                HISTORY.to_owned(),
                ByteString(self.roots.to_json().into_bytes()),
            )])),
            ..Secret::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.secrets.patch(&self.settings.history, &params, &Patch::Apply(&secret)).await?;
        self.stored = self.roots.clone();
        Ok(())
    }
}

/// When an authority below `new` may begin, where `present` is the root of the one before: at once
/// where peers have had time to trust it.
pub(super) fn begin(
    present: &[u8],
    new: &[u8],
    since: SystemTime,
    propagation: Duration,
) -> SystemTime {
    if present == new { since } else { since + propagation }
}

async fn get_or_make(secrets: &Api<Secret>, settings: &RootSettings) -> anyhow::Result<Secret> {
    let name = &settings.secret;
    loop {
        if let Some(secret) = secrets.get_opt(name).await? {
            return Ok(secret);
        }
        let (certificate, key) = Material::generate(&settings.trust_domain, SystemTime::now())?;
        let field = |key: &str, text: &str| (key.to_owned(), ByteString(text.as_bytes().to_vec()));
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([(MADE_BY.to_owned(), FIELD_MANAGER.to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(BTreeMap::from([
                field(CERTIFICATE, &certificate),
                field(KEY, &key),
                field(ROOTS, &certificate),
            ])),
            ..Secret::default()
        };
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(secret) => {
                tracing::info!(secret = name, settings.trust_domain, "made a trust root");
                return Ok(secret);
            }
            // Another replica was faster; its root is ours.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn read(
    data: &BTreeMap<String, ByteString>,
    settings: &RootSettings,
    now: SystemTime,
) -> anyhow::Result<Material> {
    let field = |name: &str| data.get(name).map(|field| field.0.as_slice());
    let missing = |name: &str| {
        format!(
            "{name}: is not there; a root consists of tls.crt, tls.key and ca.crt (delete the \
             Secret to have a new one made)"
        )
    };
    let certificate = field(CERTIFICATE).with_context(|| missing(CERTIFICATE))?;
    let key = field(KEY).with_context(|| missing(KEY))?;
    let roots = field(ROOTS).filter(|roots| !roots.is_empty());
    Material::read(certificate, key, roots, now)
        .and_then(|material| material.of_trust_domain(&settings.trust_domain))
        .map_err(anyhow::Error::msg)
}

fn read_history(secret: &Secret) -> anyhow::Result<Roots> {
    let data = secret.data.as_ref().and_then(|data| data.get(HISTORY));
    match data {
        Some(json) => Roots::from_json(&json.0)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("Secret {}: {HISTORY}", secret.name_any())),
        None => Ok(Roots::default()),
    }
}
