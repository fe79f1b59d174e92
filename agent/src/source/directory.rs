//! A directory of manifests, watched.
//!
//! An edit is read once its writer has closed or renamed the file, so that a half-written file
//! (an empty one, right after `O_TRUNC`) is not taken for an edit that removes things. A writer
//! that leaves the file open has it read [`UNCLOSED`] after its last write.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RemoveKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use weft_model::dialect::Finding;
use weft_model::mesh::Settings;

use super::{FindingsLog, Tree, View, is_manifest};

/// From a file's close or rename to reading it: several files are often written together.
const SETTLED: Duration = Duration::from_millis(4);
/// From a write to reading, where the writer does not close the file.
const UNCLOSED: Duration = Duration::from_millis(50);
/// From a removal to believing it: some editors remove a file and write it anew.
const REMOVED: Duration = Duration::from_millis(25);
/// Between tries to watch a directory that has gone, or could not be listed.
const RETRY: Duration = Duration::from_millis(500);

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be listed.
    #[error("--manifests: {source}")]
    List {
        /// The system's answer.
        source: io::Error,
    },
    /// The system refuses to watch it.
    #[error("--manifests {path}: cannot be watched: {source}")]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
    /// No thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// A directory of manifests.
pub struct Directory {
    root: PathBuf,
    settings: Settings,
}

impl Directory {
    /// At `root`.
    pub fn new(root: &Path, settings: Settings) -> Self {
        Self { root: root.to_owned(), settings }
    }

    /// Reads everything, and goes on watching until the receiver is gone. The receiver's first
    /// value is what was read.
    ///
    /// # Errors
    /// Where the directory cannot be listed or watched.
    pub fn watch(self) -> Result<watch::Receiver<View>, SourceError> {
        let (sender, events) = mpsc::channel();
        // Watching begins before reading: nothing falls between.
        let watcher = self.watcher(sender.clone())?;
        let mut tree = Tree::new(vec![self.root.clone()], self.settings.clone());
        tree.scan().map_err(|source| SourceError::List { source })?;
        let mut log = FindingsLog::default();
        let (publish, receiver) = watch::channel(view(&tree, &[], &mut log));
        std::thread::Builder::new()
            .name("weft-manifests".to_owned())
            .spawn(move || {
                Watch {
                    directory: self,
                    tree,
                    publish,
                    log,
                    sender,
                    watcher: Some(watcher),
                    pending: Pending::default(),
                    problems: Vec::new(),
                }
                .run(&events);
            })
            .map_err(SourceError::Thread)?;
        Ok(receiver)
    }

    fn watcher(
        &self,
        sender: mpsc::Sender<notify::Result<notify::Event>>,
    ) -> Result<RecommendedWatcher, SourceError> {
        let refused = |source| SourceError::Watch { path: self.root.clone(), source };
        let mut watcher = notify::recommended_watcher(sender).map_err(refused)?;
        watcher.watch(&self.root, RecursiveMode::Recursive).map_err(refused)?;
        Ok(watcher)
    }
}

/// What is to be read, and when.
#[derive(Debug, Default)]
struct Pending {
    files: BTreeMap<PathBuf, Instant>,
    scan: Option<Instant>,
}

impl Pending {
    fn take(&mut self, event: &notify::Event, now: Instant) {
        if event.need_rescan() {
            self.scan_by(now);
        }
        let wait = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => SETTLED,
            EventKind::Create(_) | EventKind::Modify(_) => UNCLOSED,
            EventKind::Remove(_) => REMOVED,
            _ => return,
        };
        for path in &event.paths {
            if is_manifest(path) && !matches!(event.kind, EventKind::Remove(RemoveKind::Folder)) {
                // A later event may shorten or lengthen the wait: the last word counts.
                self.files.insert(path.clone(), now + wait);
            } else if !matches!(event.kind, EventKind::Access(_)) {
                // A folder, or the link that a ConfigMap's files go through.
                self.scan_by(now + wait.min(REMOVED));
            }
        }
    }

    fn scan_by(&mut self, when: Instant) {
        self.scan = Some(self.scan.map_or(when, |known| known.min(when)));
    }

    fn next(&self) -> Option<Instant> {
        self.files.values().copied().chain(self.scan).min()
    }

    /// What is due.
    fn due(&mut self, now: Instant) -> (Vec<PathBuf>, bool) {
        let due: Vec<PathBuf> = self
            .files
            .iter()
            .filter(|(_, when)| **when <= now)
            .map(|(path, _)| path.clone())
            .collect();
        for path in &due {
            self.files.remove(path);
        }
        let scan = self.scan.is_some_and(|when| when <= now);
        if scan {
            self.scan = None;
        }
        (due, scan)
    }
}

struct Watch {
    directory: Directory,
    tree: Tree,
    publish: watch::Sender<View>,
    log: FindingsLog,
    sender: mpsc::Sender<notify::Result<notify::Event>>,
    /// None while the directory cannot be watched.
    watcher: Option<RecommendedWatcher>,
    pending: Pending,
    problems: Vec<String>,
}

impl Watch {
    fn run(mut self, events: &mpsc::Receiver<notify::Result<notify::Event>>) {
        while !self.publish.is_closed() {
            let now = Instant::now();
            let wait = self
                .pending
                .next()
                .map_or(RETRY, |next| next.saturating_duration_since(now).min(RETRY));
            match events.recv_timeout(wait) {
                Ok(event) => {
                    self.take(event);
                    while let Ok(event) = events.try_recv() {
                        self.take(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.look();
        }
    }

    fn take(&mut self, event: notify::Result<notify::Event>) {
        let now = Instant::now();
        match event {
            Ok(event) => {
                let removed = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(_));
                if removed && event.paths.contains(&self.directory.root) {
                    // The watch has gone with it.
                    self.watcher = None;
                    self.pending.scan_by(now + REMOVED);
                }
                self.pending.take(&event, now);
            }
            Err(error) => {
                tracing::warn!(%error, "watching the manifests; looking at all of them");
                self.pending.scan_by(now);
            }
        }
    }

    fn look(&mut self) {
        let mut problems = Vec::new();
        if self.watcher.is_none() {
            match self.directory.watcher(self.sender.clone()) {
                Ok(watcher) => {
                    self.watcher = Some(watcher);
                    self.pending.scan_by(Instant::now());
                }
                Err(error) => problems.push(format!("{error}; what was read stays in force")),
            }
        }
        let (files, scan) = self.pending.due(Instant::now());
        let mut changed = false;
        for path in files {
            changed |= self.tree.reread(&path);
        }
        if scan && problems.is_empty() {
            match self.tree.scan() {
                Ok(any) => changed |= any,
                Err(source) => {
                    let error = SourceError::List { source };
                    problems.push(format!("{error}; what was read stays in force"));
                    self.watcher = None;
                }
            }
        }
        if problems != self.problems {
            for problem in &problems {
                tracing::error!("{problem}");
            }
            self.problems = problems;
            changed = true;
        }
        if changed {
            let view = view(&self.tree, &self.problems, &mut self.log);
            self.publish.send_replace(view);
        }
    }
}

fn view(tree: &Tree, problems: &[String], log: &mut FindingsLog) -> View {
    let manifests = tree.manifests();
    let (mesh, findings) = tree.mesh_and_findings();
    let findings: Arc<[Finding]> = findings.into();
    log.update(&findings);
    View {
        mesh: Arc::new(mesh),
        findings,
        problems: problems.into(),
        documents: manifests.documents(),
        complete: true,
    }
}
