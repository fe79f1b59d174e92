//! Which certificates the node has, and when each is renewed.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::CaClient;
use super::{Authority, CaError, WorkloadCertificate};
use crate::identity::SpiffeId;

/// After a refusal it is tried again this much later, then later and later.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Up to twice this, with jitter.
const LAST_RETRY: Duration = Duration::from_secs(15);
/// The system's clock may be set: it is looked at this often.
const LOOK: Duration = Duration::from_secs(30);
/// How many are asked for at once.
const AT_ONCE: usize = 8;

/// The certificates of the identities that have a pod on this node, and whom they trust.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Issued {
    /// One per identity.
    pub certificates: BTreeMap<SpiffeId, Arc<WorkloadCertificate>>,
    /// The roots that peers' chains may end in, in PEM; empty where they are not known yet.
    pub roots_pem: Arc<str>,
}

/// Where certificates come from.
pub enum Source {
    /// An authority of the agent's own.
    Directory(Box<Authority>),
    /// The cluster's.
    Ca(CaClient),
}

/// Keeps a certificate for every wanted identity, renewed at half its life.
pub struct WorkloadCertificates {
    source: Arc<Source>,
    schedule: Schedule,
    roots: watch::Receiver<Arc<str>>,
}

/// Which certificates there are, and what is due.
#[derive(Default)]
pub(super) struct Schedule {
    entries: BTreeMap<SpiffeId, Entry>,
}

struct Entry {
    certificate: Option<Arc<WorkloadCertificate>>,
    due: SystemTime,
    asking: bool,
    /// Delays between attempts, while they fail.
    delays: Option<ExponentialBackoff>,
}

impl Source {
    async fn issue(&self, identity: &SpiffeId) -> Result<WorkloadCertificate, CaError> {
        match self {
            Self::Directory(authority) => authority.issue(identity, SystemTime::now()),
            Self::Ca(client) => client.issue(identity).await,
        }
    }

    fn roots(&self) -> watch::Receiver<Arc<str>> {
        match self {
            Self::Directory(authority) => {
                watch::Sender::new(authority.roots_pem().into()).subscribe()
            }
            Self::Ca(client) => client.roots(),
        }
    }
}

impl WorkloadCertificates {
    /// Without any yet.
    pub fn new(source: Source) -> Self {
        let roots = source.roots();
        Self { source: Arc::new(source), schedule: Schedule::default(), roots }
    }

    /// The roots that peers' chains must end in, in PEM; empty where they are not known yet.
    pub fn roots_pem(&self) -> Arc<str> {
        self.roots.borrow().clone()
    }

    /// Follows what is wanted and says what there is, until nobody wants anything any more.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<SpiffeId>>,
        issued: watch::Sender<Issued>,
    ) {
        let mut following = JoinSet::new();
        let mut reached = match &*self.source {
            Source::Directory(_) => None,
            Source::Ca(client) => {
                following.spawn(client.clone().follow_roots());
                Some(client.reached())
            }
        };
        let mut asking = JoinSet::new();
        let mut roots_known = true;
        loop {
            let now = SystemTime::now();
            self.schedule.want(&wanted.borrow_and_update(), now);
            self.schedule.expire(now);
            while asking.len() < AT_ONCE {
                let Some(identity) = self.schedule.next_due(now) else { break };
                let source = self.source.clone();
                asking.spawn(async move {
                    let result = source.issue(&identity).await;
                    (identity, result)
                });
            }
            let now_issued = Issued {
                certificates: self.schedule.certificates(),
                roots_pem: self.roots.borrow_and_update().clone(),
            };
            issued.send_if_modified(|known| {
                let changed = *known != now_issued;
                *known = now_issued;
                changed
            });
            let wait = self
                .schedule
                .wakes()
                .map(|next| next.duration_since(now).unwrap_or_default())
                .map_or(LOOK, |wait| wait.min(LOOK));
            // What is due and has no turn waits for one that ends.
            let wait = if asking.len() >= AT_ONCE { LOOK } else { wait };
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = self.roots.changed(), if roots_known => roots_known = changed.is_ok(),
                Some(asked) = asking.join_next() => {
                    if let Ok((identity, result)) = asked {
                        self.schedule.done(&identity, result, SystemTime::now());
                    }
                }
                () = again(&mut reached) => self.schedule.retry(SystemTime::now()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// When the authority is reached again.
async fn again(reached: &mut Option<watch::Receiver<u64>>) {
    match reached {
        Some(counter) => {
            if counter.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

impl Schedule {
    /// Begins what is newly wanted, and forgets what is no longer.
    pub(super) fn want(&mut self, wanted: &BTreeSet<SpiffeId>, now: SystemTime) {
        self.entries.retain(|identity, _| wanted.contains(identity));
        for identity in wanted {
            self.entries.entry(identity.clone()).or_insert_with(|| Entry {
                certificate: None,
                due: now,
                asking: false,
                delays: None,
            });
        }
    }

    /// Something to ask for; it is not named again before [`Self::done`].
    pub(super) fn next_due(&mut self, now: SystemTime) -> Option<SpiffeId> {
        // Whoever has none goes first.
        let (identity, entry) = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| !entry.asking && entry.due <= now)
            .min_by_key(|(_, entry)| (entry.certificate.is_some(), entry.due))?;
        entry.asking = true;
        Some(identity.clone())
    }

    /// Takes over an answer.
    pub(super) fn done(
        &mut self,
        identity: &SpiffeId,
        result: Result<WorkloadCertificate, CaError>,
        now: SystemTime,
    ) {
        // It may be wanted no more.
        let Some(entry) = self.entries.get_mut(identity) else { return };
        entry.asking = false;
        match result {
            Ok(certificate) => {
                let renewal = entry.certificate.is_some();
                tracing::debug!(%identity, renewal, "have a certificate");
                entry.due = certificate.renew_at;
                entry.certificate = Some(Arc::new(certificate));
                entry.delays = None;
            }
            Err(error) => {
                let delays = entry.delays.get_or_insert_with(|| {
                    ExponentialBuilder::new()
                        .with_min_delay(FIRST_RETRY)
                        .with_max_delay(LAST_RETRY)
                        .without_max_times()
                        .with_jitter()
                        .build()
                });
                let delay = delays.next().unwrap_or(LAST_RETRY);
                entry.due = now + delay;
                let left = entry
                    .certificate
                    .as_ref()
                    .map(|known| known.not_after.duration_since(now).unwrap_or_default().as_secs());
                tracing::error!(
                    %identity, %error, seconds_left = left, again_in = ?delay, "no new certificate",
                );
            }
        }
    }

    /// Forgets certificates that have ended: who would show one is refused by its peer.
    pub(super) fn expire(&mut self, now: SystemTime) {
        for (identity, entry) in &mut self.entries {
            if entry.certificate.take_if(|known| known.not_after <= now).is_some() {
                tracing::error!(
                    %identity,
                    "its certificate has ended, and there is no new one: tunnels of its pods can \
                     no longer be opened",
                );
            }
        }
    }

    /// What failed is tried again at once.
    pub(super) fn retry(&mut self, now: SystemTime) {
        for entry in self.entries.values_mut() {
            if entry.delays.take().is_some() {
                entry.due = entry.due.min(now);
            }
        }
    }

    /// When something is due, or ends.
    pub(super) fn wakes(&self) -> Option<SystemTime> {
        let due = self.entries.values().filter(|entry| !entry.asking).map(|entry| entry.due);
        let ends = self.entries.values().filter_map(|entry| entry.certificate.as_ref());
        due.chain(ends.map(|certificate| certificate.not_after)).min()
    }

    pub(super) fn certificates(&self) -> BTreeMap<SpiffeId, Arc<WorkloadCertificate>> {
        self.entries
            .iter()
            .filter_map(|(identity, entry)| Some((identity.clone(), entry.certificate.clone()?)))
            .collect()
    }
}
