//! One leader among the replicas: a Lease, held as client-go's leader election holds it. Expiry is
//! counted from when a change of the Lease was seen, so clocks of nodes need not agree. (The two
//! published crates compare the Lease's times with the local clock, or leave the renewal's deadline
//! to their user.)

#[cfg(test)]
mod tests;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How long a Lease counts after its last renewal was seen.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long leads no more.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often the Lease is looked at.
const EVERY: Duration = Duration::from_secs(2);
/// A request that takes longer has failed.
const REQUEST: Duration = Duration::from_secs(5);

/// Whether this replica leads, and the client with which a leader does its work.
#[derive(Clone)]
pub struct Leadership {
    /// For the API server.
    pub client: Client,
    /// Whether this replica leads now. What a leader has begun when this turns false, it should
    /// leave.
    pub leading: watch::Receiver<bool>,
}

impl Leadership {
    /// Runs `work` whenever this replica leads, and drops it when it no longer does.
    pub async fn while_leading<F>(mut self, mut work: impl FnMut(Client) -> F)
    where
        F: Future<Output = ()>,
    {
        loop {
            if self.leading.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            let client = self.client.clone();
            tokio::select! {
                () = work(client) => {}
                lost = self.leading.wait_for(|leading| !*leading) => {
                    if lost.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// A candidate.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    candidate: String,
}

/// A Lease as it was seen, and when it was first seen so.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// What a candidate does about a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is ours.
    Renew,
    /// It is nobody's, or its holder has not renewed it.
    Take,
    /// It is another's.
    Wait,
}

pub(super) fn step(seen: &Seen, candidate: &str, now: Instant) -> Step {
    let holder = seen.spec.holder_identity.as_deref().unwrap_or_default();
    let seconds = seen.spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = seconds.map_or(DURATION, Duration::from_secs);
    if holder == candidate {
        Step::Renew
    } else if holder.is_empty() || now >= seen.at + duration {
        Step::Take
    } else {
        Step::Wait
    }
}

impl Election {
    /// Of `candidate` (the name of its pod) for the Lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, candidate: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            name: name.to_owned(),
            candidate: candidate.to_owned(),
        }
    }

    /// Takes part until `stop` turns true or its sender has gone, then gives the Lease back.
    pub async fn run(self, leading: watch::Sender<bool>, mut stop: watch::Receiver<bool>) {
        let mut seen: Option<Seen> = None;
        let mut renewed = Instant::now();
        loop {
            let began = Instant::now();
            match timeout(REQUEST, self.attempt(&mut seen)).await {
                Ok(Ok(true)) => {
                    // From before the request: it may have been written at once.
                    renewed = began;
                    if !leading.send_replace(true) {
                        tracing::info!(lease = self.name, candidate = self.candidate, "leads now");
                    }
                }
                Ok(Ok(false)) => {
                    if leading.send_replace(false) {
                        tracing::warn!(lease = self.name, "another leads now");
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "the Lease cannot be had or renewed");
                }
                Err(_) => tracing::warn!(lease = self.name, "the API server does not answer"),
            }
            if renewed.elapsed() >= RENEW_WITHIN && leading.send_replace(false) {
                tracing::error!(lease = self.name, "could not renew the Lease; leads no more");
            }
            tokio::select! {
                () = sleep(EVERY) => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        if leading.send_replace(false) {
            self.release(seen).await;
        }
    }

    /// Whether this replica holds the Lease now.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else {
            let spec = self.held(1, None);
            return self.written(
                self.leases.create(&PostParams::default(), &self.lease(spec, None)).await,
                seen,
            );
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let now = Instant::now();
        let looked = match seen.take() {
            Some(known) if known.spec == spec => known,
            _ => Seen { spec, at: now },
        };
        let step = step(&looked, &self.candidate, now);
        let transitions = looked.spec.lease_transitions.unwrap_or_default();
        let spec = match step {
            Step::Wait => {
                *seen = Some(looked);
                return Ok(false);
            }
            Step::Renew => self.held(transitions, looked.spec.acquire_time.clone()),
            Step::Take => self.held(transitions.saturating_add(1), None),
        };
        *seen = Some(looked);
        let lease = self.lease(spec, lease.metadata.resource_version);
        self.written(self.leases.replace(&self.name, &PostParams::default(), &lease).await, seen)
    }

    /// Whether a write went through; where another was faster, the next look shows who.
    fn written(
        &self,
        result: Result<Lease, kube::Error>,
        seen: &mut Option<Seen>,
    ) -> Result<bool, kube::Error> {
        match result {
            Ok(lease) => {
                let spec = lease.spec.unwrap_or_default();
                *seen = Some(Seen { spec, at: Instant::now() });
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn release(&self, seen: Option<Seen>) {
        let Ok(Some(lease)) = self.leases.get_opt(&self.name).await else { return };
        let spec = lease.spec.clone().unwrap_or_default();
        if seen.is_none() || spec.holder_identity.as_deref() != Some(&self.candidate) {
            return;
        }
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..spec
        };
        let lease = self.lease(spec, lease.metadata.resource_version);
        match self.leases.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => tracing::info!(lease = self.name, "gave the Lease back"),
            Err(error) => tracing::warn!(lease = self.name, %error, "could not give it back"),
        }
    }

    fn held(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.candidate.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    fn lease(&self, spec: LeaseSpec, resource_version: Option<String>) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                resource_version,
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        }
    }
}
