//! What a cluster leaves on disk, so that another process can use or remove it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupDriver;
use crate::manifest::{NamespaceSpec, ServiceRecord};
use crate::place::HostRecord;
use crate::pod::PodRecord;

/// Each cluster has a directory of its name here.
pub(crate) const DIRECTORY: &str = "/run/weft-cluster";
/// What is large, or is executed (`/run` may be mounted so that nothing can be), lies in a
/// directory of its name here.
const DATA: &str = "/var/lib/weft-cluster";

/// Everything that is written down of a cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) kept: bool,
    pub(crate) mtu: u32,
    pub(crate) driver: CgroupDriver,
    pub(crate) hosts: Vec<HostRecord>,
    pub(crate) namespaces: Vec<NamespaceSpec>,
    pub(crate) pods: Vec<PodRecord>,
    pub(crate) services: Vec<ServiceRecord>,
}

/// A cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterSummary {
    /// Its name.
    pub name: String,
    /// It was left up on purpose ([`crate::Cluster::keep`]).
    pub kept: bool,
    /// The process that made it still holds it.
    pub owned: bool,
}

/// A cluster's directory. The lock on the file in it is held as long as the owner lives: the
/// kernel lets go of it however the owner ends.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
}

impl Directory {
    pub(crate) fn of(name: &str) -> Self {
        Self { path: Path::new(DIRECTORY).join(name) }
    }

    /// Makes the directory and takes its lock.
    pub(crate) fn create(&self) -> Result<File> {
        let _turn = take_turn()?;
        fs::create_dir(&self.path)
            .with_context(|| format!("cannot make {}: is it in use?", self.path.display()))?;
        for part in ["manifests", "logs"] {
            fs::create_dir(self.path.join(part))?;
        }
        let lock = File::create(self.path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(lock)
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.path.join("manifests")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(crate) fn read(&self) -> Result<State> {
        let path = self.path.join("state.json");
        let text = fs::read(&path)
            .with_context(|| format!("no cluster is known at {}", self.path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    pub(crate) fn write(&self, state: &State) -> Result<()> {
        replace(&self.path.join("state.json"), &serde_json::to_vec_pretty(state)?)
    }

    fn owned(&self) -> bool {
        let Ok(lock) = File::open(self.path.join("lock")) else { return false };
        flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
    }
}

/// Where the cluster of this name keeps what is large, if it has such.
pub(crate) fn data_directory(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

/// The clusters on this machine.
pub(crate) fn list() -> Result<Vec<ClusterSummary>> {
    let _turn = take_turn()?;
    let mut clusters = Vec::new();
    for entry in fs::read_dir(DIRECTORY)?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !entry.path().is_dir() {
            continue;
        }
        let directory = Directory::of(&name);
        let kept = directory.read().is_ok_and(|state| state.kept);
        clusters.push(ClusterSummary { owned: directory.owned(), kept, name });
    }
    clusters.sort();
    Ok(clusters)
}

/// Writes a file as a whole: readers see the old or the new text.
pub(crate) fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let write = || {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        // A leading dot: a watcher of manifests must not take it for one.
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        let temporary = path.with_file_name(hidden);
        File::create(&temporary)?.write_all(text)?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Between the making of a directory and the taking of its lock nobody may take it for stale.
pub(crate) fn take_turn() -> Result<File> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
    let file = File::create(Path::new(DIRECTORY).join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}
