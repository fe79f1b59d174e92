//! A worker thread: its listeners, its tunnels, its connections.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};
use weft_common::PodId;

use crate::bounds::Shares;
use crate::proxy::Shared;
use crate::tunnel::Pool;
use crate::{inbound, listener, outbound, tls};

/// What the connections of a thread have in common.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Rc<Pool>,
    /// Outbound connections, by this node's pod.
    pub(crate) clients: Shares<PodId>,
    /// Inbound connections, by the client's address.
    pub(crate) sources: Shares<IpAddr>,
    /// Handshakes of tunnels, by the peer's address.
    pub(crate) handshakes: Shares<IpAddr>,
    /// Tunnels, by the peer's address.
    pub(crate) tunnels: Shares<IpAddr>,
    /// No more connections are taken, on tunnels neither.
    pub(crate) closing: watch::Sender<bool>,
    complaints: Complaints,
}

impl Worker {
    /// Reports a refused connection. Since a pod can cause any number of them, only one a second
    /// is shown above debug level.
    pub(crate) fn complain(&self, peer: SocketAddr, failure: &dyn std::fmt::Display) {
        match self.complaints.take() {
            Some(unseen) => {
                tracing::warn!(%peer, %failure, unseen, "connection refused");
            }
            None => tracing::debug!(%peer, %failure, "connection refused"),
        }
    }

    /// Waits until no connection is open and no handshake under way; and, when the worker closes, no
    /// tunnel is open on which a connection may still come.
    async fn idle(&self) {
        const LOOK: Duration = Duration::from_millis(20);

        loop {
            // First of all: a connection that was just accepted is not counted yet.
            tokio::time::sleep(LOOK).await;
            if self.clients.is_unused()
                && self.sources.is_unused()
                && self.handshakes.is_unused()
                && (!*self.closing.borrow() || self.tunnels.is_unused())
            {
                return;
            }
        }
    }
}

struct Complaints {
    last: Cell<Option<Instant>>,
    unseen: Cell<u64>,
}

impl Complaints {
    /// How many were not shown since the last one, if this one may be.
    fn take(&self) -> Option<u64> {
        let recently = |last: Instant| last.elapsed() < Duration::from_secs(1);
        if self.last.get().is_some_and(recently) {
            self.unseen.set(self.unseen.get() + 1);
            return None;
        }
        self.last.set(Some(Instant::now()));
        Some(self.unseen.take())
    }
}

/// Runs a worker until the proxy stops.
pub(crate) fn run(shared: Arc<Shared>, threads: usize) -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .context("cannot start a runtime")?;
    tls::warm_up();
    let limits = &shared.limits;
    let worker = Rc::new(Worker {
        pool: Rc::default(),
        clients: Shares::new(limits.connections_per_pod.div_ceil(threads)),
        // A tunnel is on one thread with all that it carries: each thread takes the whole bound.
        sources: Shares::new(limits.connections_per_pod),
        handshakes: Shares::new(limits.handshakes_per_peer),
        tunnels: Shares::new(limits.tunnels_per_peer),
        closing: watch::Sender::new(false),
        complaints: Complaints { last: Cell::new(None), unseen: Cell::new(0) },
        shared,
    });
    runtime.block_on(supervise(worker));
    Ok(())
}

/// Keeps the listeners that the settings ask for, and closes what is no longer of use.
async fn supervise(worker: Rc<Worker>) {
    const SWEEP: Duration = Duration::from_secs(5);
    const RETRY: Duration = Duration::from_millis(500);

    let mut changes = worker.shared.changes();
    let mut stopping = worker.shared.stopping.subscribe();
    let mut listeners = Listeners::default();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let drain = loop {
        if let Some(drain) = *stopping.borrow_and_update() {
            break drain;
        }
        let complete = listeners.follow(&worker);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { break Duration::ZERO },
            stopped = stopping.changed() => if stopped.is_err() { break Duration::ZERO },
            _ = sweep.tick() => {}
            () = tokio::time::sleep(RETRY), if !complete => {}
        }
        let snapshot = worker.shared.snapshot();
        worker.pool.sweep(&worker.shared.limits, |id| snapshot.credentials(id).cloned());
    };
    end(&worker, drain).await;
}

/// Goes on as before while anything is open: until this process is gone there may be nobody else
/// to take what comes. Then, and at the latest after `drain`, nothing more is taken, and what has
/// just come may still end.
async fn end(worker: &Worker, drain: Duration) {
    const LAST: Duration = Duration::from_secs(1);

    let _ = tokio::time::timeout(drain, worker.idle()).await;
    worker.closing.send_replace(true);
    worker.pool.close();
    let _ = tokio::time::timeout(LAST.min(drain), worker.idle()).await;
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    Outbound,
    Inbound,
}

#[derive(Default)]
struct Listeners(HashMap<(Kind, SocketAddr), AbortHandle>);

impl Listeners {
    /// Opens and closes listeners as the settings say; false if one could not be opened.
    fn follow(&mut self, worker: &Rc<Worker>) -> bool {
        let snapshot = worker.shared.snapshot();
        let outbound = snapshot.outbound.iter().map(|address| (Kind::Outbound, *address));
        let inbound = snapshot.inbound.iter().map(|address| (Kind::Inbound, *address));
        let wanted: Vec<_> = outbound.chain(inbound).collect();
        self.0.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        let mut complete = true;
        for key @ (kind, address) in wanted {
            if self.0.contains_key(&key) {
                continue;
            }
            let listening = listener::listen(address).and_then(|listener| {
                if kind == Kind::Outbound {
                    listener::reset_at_end(&listener)?;
                }
                Ok(listener)
            });
            match listening {
                Ok(listener) => {
                    tracing::info!(%address, ?kind, "listening");
                    let worker = worker.clone();
                    let task = match kind {
                        Kind::Outbound => {
                            tokio::task::spawn_local(outbound::serve(worker, listener))
                        }
                        Kind::Inbound => tokio::task::spawn_local(inbound::serve(worker, listener)),
                    };
                    self.0.insert(key, task.abort_handle());
                }
                Err(error) => {
                    tracing::error!(%address, ?kind, %error, "cannot listen; trying again");
                    complete = false;
                }
            }
        }
        complete
    }
}
