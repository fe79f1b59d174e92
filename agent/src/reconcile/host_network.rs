//! Pods on the node's network that the source does not tell of (yet). They are the node, to every
//! policy; and where the API server is one of them, or its database, the source tells of nobody
//! before they may talk.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::kernel::{CgroupId, PodCgroup, cgroups};

/// Those that were found by their processes.
#[derive(Debug, Default)]
pub(super) struct HostNetwork {
    found: BTreeSet<CgroupId>,
    /// Processes that looked like one of the node's network at the last look, and their cgroups.
    suspects: BTreeSet<(CgroupId, u32)>,
}

impl HostNetwork {
    /// Looks at the cgroups that nobody knows. Returns those that are found on the node's network
    /// now: one of their processes has to look so twice.
    pub(super) fn look(&mut self, unknown: &[&PodCgroup]) -> Vec<CgroupId> {
        let unknown = unknown.iter().filter(|cgroup| !self.found.contains(&cgroup.id));
        let suspects: BTreeSet<(CgroupId, u32)> = unknown
            .flat_map(|cgroup| {
                let processes = cgroups::processes(&cgroup.path).into_iter();
                processes.map(|process| (cgroup.id, process))
            })
            // It may have ended, or may not be looked at: the pod stays unknown.
            .filter(|(_, process)| is_on_host(*process).unwrap_or(false))
            .collect();
        let found: BTreeSet<CgroupId> =
            suspects.intersection(&self.suspects).map(|(cgroup, _)| *cgroup).collect();
        self.suspects = suspects;
        self.found.extend(&found);
        found.into_iter().collect()
    }

    /// Whether this cgroup was found so.
    pub(super) fn contains(&self, cgroup: CgroupId) -> bool {
        self.found.contains(&cgroup)
    }

    /// The cgroup has gone.
    pub(super) fn forget(&mut self, cgroup: CgroupId) {
        self.found.remove(&cgroup);
    }
}

/// Whether a container's process is in the agent's own network namespace, which is the node's.
///
/// A runtime's process is in the pod's cgroup, and in the node's namespaces, before it becomes the
/// container's. It joins the pod's network before it makes the container's mount namespace, so who
/// shares the mounts of its parent is not judged.
fn is_on_host(process: u32) -> io::Result<bool> {
    let directory = Path::new("/proc").join(process.to_string());
    let stat = fs::read_to_string(directory.join("stat"))?;
    let parent = parent(&stat).ok_or_else(|| io::Error::other("no parent in its stat"))?;
    let namespace = |process: &Path, kind: &str| -> io::Result<(u64, u64)> {
        let namespace = fs::metadata(process.join("ns").join(kind))?;
        Ok((namespace.dev(), namespace.ino()))
    };
    let parent = Path::new("/proc").join(parent);
    let contained = namespace(&directory, "mnt")? != namespace(&parent, "mnt")?;
    Ok(contained && namespace(&directory, "net")? == namespace(Path::new("/proc/self"), "net")?)
}

/// The parent's number in a process's stat (proc_pid_stat(5)); the name before it is in parentheses,
/// and may have any in it.
fn parent(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1).filter(|parent| *parent != "0")
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn reads_the_parent() {
        assert_eq!(parent("12 (weft ) 3 (x) S 7 12 12 0 -1"), Some("7"));
        assert_eq!(parent("1 (systemd) S 0 1 1 0 -1"), None);
    }
}
