//! What users are told about their objects: the conditions `Accepted` and `Enforced` on those of
//! weft.dev, and Events for those of every dialect that are not in force as they were written.
//!
//! One writer: the leader of `weft ca`. It reads the objects itself, with the dialects that the
//! agents read them with, so that agents need to tell it no more than which versions are in force
//! on their nodes ([`report`]). The [`Board`] decides what is to be written, and when.

mod board;
pub mod cluster;
mod events;
mod kinds;
pub mod report;
mod service;
mod watch;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use weft_model::dialect::Finding;
use weft_model::mesh::{Mesh, ObjectRef, Settings};

pub use self::board::{Board, Change, Write};
pub use self::service::{ControlService, Nodes};
use self::watch::Observed;

/// The board is looked at this often.
const TICK: Duration = Duration::from_millis(250);

/// The board of the replica that leads; what the service writes to and the leader reads.
#[derive(Clone, Default)]
pub struct Shared {
    /// None while another replica leads.
    board: Arc<Mutex<Option<Board>>>,
}

/// What the leader is told.
#[derive(Clone, Debug)]
pub struct LeaderSettings {
    /// What objects are read with.
    pub mesh: Settings,
    /// Namespace and name of the agents' DaemonSet, which says how many nodes there should be.
    pub agents: (String, String),
    /// Name of this replica, as Events show it.
    pub instance: String,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<Board>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this replica leads.
    pub fn leads(&self) -> bool {
        self.lock().is_some()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Board) -> T) -> Option<T> {
        self.lock().as_mut().map(act)
    }

    /// Does the leader's work for as long as it is polled.
    pub async fn lead(self, client: Client, settings: LeaderSettings) {
        let _turn = Turn::begin(&self);
        let (sender, mut observed) = mpsc::channel(256);
        let watching = watch::watch(client.clone(), &settings, sender);
        let (events, to_publish) = mpsc::channel(1024);
        let publishing = events::publish(client.clone(), settings.instance.clone(), to_publish);
        let mut together = Together::new(settings.mesh.clone());
        let writing = async {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    seen = observed.recv() => {
                        let Some(seen) = seen else { return };
                        self.with(|board| observe(board, &mut together, seen));
                    }
                    _ = ticks.tick() => {
                        let now = Instant::now();
                        if let Some(findings) = together.findings() {
                            self.with(|board| board.tell(findings, now));
                        }
                        let due = self.with(|board| board.due(now)).unwrap_or_default();
                        for event in due.events {
                            // Where the queue is full, it comes back when it is due again.
                            let _ = events.try_send(event);
                        }
                        for result in write::all(&client, due.writes).await {
                            let now = Instant::now();
                            self.with(|board| board.written(&result.object, result.done, now));
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = watching => {}
            () = publishing => {}
            () = writing => {}
        }
    }
}

fn observe(board: &mut Board, together: &mut Together, seen: Observed) {
    match seen {
        Observed::Object(object, document) => {
            together.changed |= together.mesh.insert_document(&document);
            board.observe(*object, Instant::now());
        }
        Observed::Gone(object) => {
            together.changed |= together.mesh.remove(&object);
            board.forget(&object);
        }
        Observed::Listed(kind, there) => {
            for gone in together.mesh.objects(&kind) {
                if !there.contains(&gone) {
                    together.changed |= together.mesh.remove(&gone);
                }
            }
            board.retain(&kind, &there);
        }
        Observed::Nodes(expected) => board.expect(expected),
    }
}

/// The objects as agents hold them, for what one of them does to others: settings that switch a
/// dialect off, for one.
struct Together {
    mesh: Mesh,
    changed: bool,
}

impl Together {
    fn new(settings: Settings) -> Self {
        Self { mesh: Mesh { settings, ..Mesh::default() }, changed: false }
    }

    /// What is to be said about objects because of others; none where nothing has changed.
    fn findings(&mut self) -> Option<BTreeMap<ObjectRef, Vec<Finding>>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut findings: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for finding in self.mesh.clone().settle() {
            if let Some(object) = finding.object.clone() {
                findings.entry(object).or_default().push(finding);
            }
        }
        Some(findings)
    }
}

/// Puts a board up, and takes it down when dropped: whoever waits for it must not wait for a
/// leader that leads no more.
struct Turn<'a>(&'a Shared);

impl<'a> Turn<'a> {
    fn begin(shared: &'a Shared) -> Self {
        *shared.lock() = Some(Board::new(Instant::now()));
        tracing::info!("writes the status of objects");
        Self(shared)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
