//! Where pods live among the cgroups: finding the hierarchy, the pods in it, and watching for
//! new ones.
//!
//! A kubelet gives every pod a cgroup of its own, below a root (`kubepods`), directly or below a
//! cgroup of its QoS class. The systemd driver writes
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice` with `_` for `-`
//! in the uid, the cgroupfs driver `kubepods/burstable/pod<uid>`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod mount;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use mount::find_by_id;
pub use mount::{CgroupError, find_hierarchy, find_pods_root};
pub use watch::{CgroupEvent, CgroupWatch};

/// A cgroup's id: the inode of its directory, which is what
/// `bpf_get_current_ancestor_cgroup_id` answers.
pub type CgroupId = u64;

/// The cgroup of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodCgroup {
    /// `metadata.uid` of the pod.
    pub uid: Arc<str>,
    /// The cgroup's id.
    pub id: CgroupId,
    /// Its directory.
    pub path: PathBuf,
}

/// What a directory below the pods' root is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Directory {
    /// The cgroup of the pod with this uid.
    Pod(Arc<str>),
    /// The cgroup of a QoS class: pods are below it.
    QosClass,
    /// Something else.
    Other,
}

impl Directory {
    /// Tells by a directory's name.
    pub(super) fn of(name: &str) -> Self {
        if let Some(slice) = name.strip_suffix(".slice") {
            // systemd: the path of the slice's parents, joined by dashes, is part of the name.
            let last = slice.rsplit('-').next().unwrap_or(slice);
            return match last.strip_prefix("pod") {
                Some(uid) if !uid.is_empty() => Self::Pod(uid.replace('_', "-").into()),
                _ if is_qos_class(last) => Self::QosClass,
                _ => Self::Other,
            };
        }
        match name.strip_prefix("pod") {
            Some(uid) if !uid.is_empty() => Self::Pod(uid.into()),
            _ if is_qos_class(name) => Self::QosClass,
            _ => Self::Other,
        }
    }
}

fn is_qos_class(name: &str) -> bool {
    matches!(name, "burstable" | "besteffort" | "guaranteed")
}

/// The id of the cgroup at `path`.
pub fn id_of(path: &Path) -> io::Result<CgroupId> {
    Ok(fs::metadata(path)?.ino())
}

/// The cgroups of all pods below `root`, at most two levels down.
///
/// Directories that go away meanwhile are left out.
pub fn find_pods(root: &Path) -> io::Result<Vec<PodCgroup>> {
    let mut pods = Vec::new();
    for (name, path) in directories(root)? {
        match Directory::of(&name) {
            Directory::Pod(uid) => pods.extend(pod_at(uid, path)),
            Directory::QosClass => {
                for (name, path) in directories(&path).unwrap_or_default() {
                    if let Directory::Pod(uid) = Directory::of(&name) {
                        pods.extend(pod_at(uid, path));
                    }
                }
            }
            Directory::Other => {}
        }
    }
    Ok(pods)
}

fn pod_at(uid: Arc<str>, path: PathBuf) -> Option<PodCgroup> {
    Some(PodCgroup { uid, id: id_of(&path).ok()?, path })
}

/// The directories in `path`, by name.
pub(super) fn directories(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// The cgroup of a process, if it is `below` or a cgroup below that.
///
/// `/proc/PID/cgroup` does not tell: it is relative to the reader's cgroup namespace, which a
/// container has of its own.
pub fn find_cgroup_of(below: &Path, process: u32) -> io::Result<Option<PathBuf>> {
    match fs::read_to_string(below.join("cgroup.procs")) {
        Ok(listed) if listed.lines().any(|line| line.parse() == Ok(process)) => {
            return Ok(Some(below.to_owned()));
        }
        Ok(_) => {}
        // A threaded cgroup lists its processes at the root of its domain.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for (_, child) in directories(below)? {
        match find_cgroup_of(&child, process) {
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    Ok(None)
}

/// The processes in the cgroup at `path` and below it, as far as they are seen and stay.
pub fn processes(path: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<u32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for (_, below) in directories(path).unwrap_or_default() {
        found.extend(processes(&below));
    }
    found.retain(|process| *process != 0);
    found
}

/// A process in the cgroup at `path` or below it; none where there is none.
///
/// # Errors
/// Also where there are only processes of a pid namespace that the reader does not see: the agent
/// needs the host's (`hostPID`).
pub fn find_process(path: &Path) -> io::Result<Option<u32>> {
    let listed = fs::read_to_string(path.join("cgroup.procs"));
    match listed {
        Ok(listed) => {
            let pids: Vec<u32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
            if let Some(pid) = pids.iter().find(|pid| **pid != 0) {
                return Ok(Some(*pid));
            }
            // The kernel shows what has no number here as 0.
            if !pids.is_empty() {
                return Err(io::Error::other(
                    "its processes are not seen from the agent's pid namespace (hostPID: true is \
                     needed)",
                ));
            }
        }
        // A threaded cgroup lists its processes at the root of its domain.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for (_, below) in directories(path)? {
        match find_process(&below) {
            Ok(Some(pid)) => return Ok(Some(pid)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
