use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cgroup;
use crate::namespace::NetworkNamespace;
use crate::network;
use crate::state::{self, Directory};

/// Where BPF objects are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// What a cluster has left on the machine. Everything a cluster makes carries its name, so that
/// this is found by looking, and not in what some process wrote down before it died. (A cluster
/// has no link in the machine's own network namespace, but one that leads into a control plane's;
/// its links go with its namespaces.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Network namespaces.
    pub namespaces: Vec<NetworkNamespace>,
    /// Its branch of the cgroups.
    pub cgroup: Option<PathBuf>,
    /// Its directory of pinned BPF objects.
    pub pins: Option<PathBuf>,
    /// Its directory of what is large: a Kubernetes' database, images and volumes.
    pub data: Option<PathBuf>,
    /// Its directory of state, manifests and logs.
    pub directory: Option<PathBuf>,
}

impl Traces {
    /// Those of the cluster with this name.
    pub fn of(name: &str) -> Result<Self> {
        let there = |path: PathBuf| path.exists().then_some(path);
        Ok(Self {
            namespaces: NetworkNamespace::with_prefix(&format!("{name}.")),
            cgroup: there(cgroup::mount()?.join(name)),
            pins: there(Path::new(BPFFS).join(name)),
            data: there(state::data_directory(name)),
            directory: there(Directory::of(name).path),
        })
    }

    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Removes them: processes first, the directory that leads here last. What can be removed
    /// is, whatever fails; the first failure is the error.
    pub(crate) fn remove(&self) -> Result<()> {
        let mut results = Vec::new();
        if let Some(path) = &self.pins {
            results.push(fs::remove_dir_all(path).with_context(|| failed(path)));
        }
        if let Some(path) = &self.cgroup {
            results.push(cgroup::remove(path));
        }
        if !self.namespaces.is_empty() {
            results.push(network::remove_namespaces(&self.namespaces));
        }
        if let Some(path) = &self.data {
            results.push(fs::remove_dir_all(path).with_context(|| failed(path)));
        }
        if let Some(path) = &self.directory
            && results.iter().all(Result::is_ok)
        {
            results.push(fs::remove_dir_all(path).with_context(|| failed(path)));
        }
        results.into_iter().collect()
    }
}

fn failed(path: &Path) -> String {
    format!("cannot remove {}", path.display())
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for namespace in &self.namespaces {
            writeln!(f, "network namespace {}", namespace.name())?;
        }
        for path in [&self.cgroup, &self.pins, &self.data, &self.directory].into_iter().flatten() {
            writeln!(f, "{}", path.display())?;
        }
        Ok(())
    }
}
