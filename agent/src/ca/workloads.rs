//! Which certificates the node has, and when each is renewed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{Authority, WorkloadCertificate};
use crate::identity::SpiffeId;

/// After a refusal it is tried again this much later.
const RETRY: Duration = Duration::from_secs(5);
/// The system's clock may be set: it is looked at this often.
const LOOK: Duration = Duration::from_secs(30);

/// The certificates of the identities that have a pod on this node.
pub type Issued = BTreeMap<SpiffeId, Arc<WorkloadCertificate>>;

/// Keeps a certificate for every wanted identity, renewed at half its life.
pub struct WorkloadCertificates {
    authority: Authority,
    issued: Issued,
}

impl WorkloadCertificates {
    /// Without any yet.
    pub fn new(authority: Authority) -> Self {
        Self { authority, issued: BTreeMap::new() }
    }

    /// Brings the certificates to `wanted` at the time `now`, and says whether any changed and
    /// when to come again.
    pub fn reconcile(
        &mut self,
        wanted: &BTreeSet<SpiffeId>,
        now: SystemTime,
    ) -> (bool, Option<SystemTime>) {
        let before = self.issued.len();
        self.issued.retain(|identity, _| wanted.contains(identity));
        let mut changed = self.issued.len() != before;
        let mut next: Option<SystemTime> = None;
        for identity in wanted {
            let due = self.issued.get(identity).map(|certificate| certificate.renew_at);
            let again = match due {
                Some(due) if due > now => due,
                _ => match self.authority.issue(identity, now) {
                    Ok(certificate) => {
                        tracing::debug!(%identity, renewal = due.is_some(), "issued a certificate");
                        let again = certificate.renew_at;
                        self.issued.insert(identity.clone(), Arc::new(certificate));
                        changed = true;
                        again
                    }
                    Err(error) => {
                        tracing::error!(%identity, %error, "no certificate");
                        now + RETRY
                    }
                },
            };
            next = Some(next.map_or(again, |next| next.min(again)));
        }
        (changed, next)
    }

    /// What there is now.
    pub fn issued(&self) -> &Issued {
        &self.issued
    }

    /// The root that peers' chains must end in, in PEM.
    pub fn root_pem(&self) -> &str {
        self.authority.root_pem()
    }

    /// Follows what is wanted and says what there is, until nobody wants anything any more.
    pub async fn run(
        mut self,
        mut wanted: watch::Receiver<BTreeSet<SpiffeId>>,
        issued: watch::Sender<Issued>,
    ) {
        loop {
            let now = SystemTime::now();
            let identities = wanted.borrow_and_update().clone();
            let (changed, next) = self.reconcile(&identities, now);
            if changed {
                issued.send_replace(self.issued.clone());
            }
            let wait = next
                .map(|next| next.duration_since(now).unwrap_or_default())
                .map_or(LOOK, |wait| wait.min(LOOK));
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
