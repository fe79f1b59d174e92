use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::agent;
use crate::attestation::Attestation;
use crate::bounds::Limits;
use crate::snapshot::Snapshot;
use crate::worker;

/// How to run a [`Proxy`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Unix socket on which the node's agent serves `weft.v1.ProxyConfig`.
    pub agent_socket: PathBuf,
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Bounds and times.
    pub limits: Limits,
}

/// What the threads share: all of it is replaced, nothing is locked.
pub(crate) struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Counts snapshots, for those who wait for the next one.
    version: watch::Sender<u64>,
    /// For how long connections are still served, once the proxy stops.
    pub(crate) stopping: watch::Sender<Option<Duration>>,
    pub(crate) attestation: Box<dyn Attestation>,
    pub(crate) limits: Limits,
}

impl Shared {
    pub(crate) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.version.send_modify(|version| *version += 1);
    }

    /// Changes whenever there is a new snapshot.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What `find` finds in the snapshot, or in those that come within the time that a
    /// connection waits for what is not known yet.
    pub(crate) async fn find<T>(&self, find: impl Fn(&Snapshot) -> Option<T>) -> Option<T> {
        if let Some(found) = find(&self.snapshot()) {
            return Some(found);
        }
        let mut changes = self.changes();
        let search = async {
            loop {
                if let Some(found) = find(&self.snapshot()) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(self.limits.unknown_wait, search).await.ok().flatten()
    }
}

/// A running proxy. Dropping it stops it at once; see [`Proxy::stop`] for the gentle way.
pub struct Proxy {
    control: Option<Runtime>,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<()>>>,
    failed: tokio::sync::mpsc::Receiver<()>,
}

impl Proxy {
    /// Starts the threads. Listeners come up as soon as the agent has sent its settings.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn start(options: Options, attestation: impl Attestation) -> Result<Self> {
        let Options { agent_socket, threads, limits } = options;
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::default(),
            version: watch::Sender::new(0),
            stopping: watch::Sender::new(None),
            attestation: Box::new(attestation),
            limits,
        });
        let control = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("weft-control")
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let (failure, failed) = tokio::sync::mpsc::channel(1);
        let workers = (0..threads)
            .map(|index| {
                let (shared, failure) = (shared.clone(), failure.clone());
                std::thread::Builder::new()
                    .name(format!("weft-worker-{index}"))
                    .spawn(move || {
                        let result = worker::run(shared, threads);
                        // Full: somebody has said so already.
                        let _ = failure.try_send(());
                        result
                    })
                    .context("cannot start a worker thread")
            })
            .collect::<Result<Vec<_>>>()?;
        control.spawn(agent::follow(agent_socket, shared.clone()));
        Ok(Self { control: Some(control), shared, workers, failed })
    }

    /// Serves until SIGTERM or SIGINT, then stops gently.
    ///
    /// # Errors
    /// A worker has failed.
    pub fn run_until_signal(&mut self) -> Result<()> {
        if let Some(control) = &self.control {
            let failed = &mut self.failed;
            control.block_on(async {
                let mut terminate = signal(SignalKind::terminate())?;
                let mut interrupt = signal(SignalKind::interrupt())?;
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                    _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                    _ = failed.recv() => tracing::error!("a worker has ended"),
                }
                std::io::Result::Ok(())
            })?;
        }
        self.stop()
    }

    /// Goes on while connections are open, new ones too, for [`Limits::drain`] at most, and ends.
    ///
    /// # Errors
    /// A worker has failed.
    pub fn stop(&mut self) -> Result<()> {
        self.begin_stop();
        let mut result = Ok(());
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(ended) => result = result.and(ended),
                Err(_) => result = Err(anyhow!("a worker has panicked")),
            }
        }
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
        result
    }

    /// The first part of [`Proxy::stop`], which does not wait.
    pub(crate) fn begin_stop(&self) {
        self.shared.stopping.send_replace(Some(self.shared.limits.drain));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
        self.shared.stopping.send_replace(Some(Duration::ZERO));
    }
}
