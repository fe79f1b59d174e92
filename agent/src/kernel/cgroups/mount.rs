use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CgroupId;

/// Why the cgroup hierarchy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The list of mounts cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There are no cgroups of pods.
    #[error(
        "there are no cgroups of pods (kubepods.slice, kubepods) in {}: is a kubelet running? A \
         pod needs the host's /sys/fs/cgroup as a hostPath volume; --pods-cgroup says where they \
         are otherwise (a directory with one per pod, named pod<uid>)",
        paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoPods {
        /// The hierarchies that were searched.
        paths: Vec<PathBuf>,
    },
    /// There is no hierarchy of version 2.
    #[error(
        "no cgroup v2 hierarchy is mounted here (looked in {}); mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup`, or boot with `systemd.unified_cgroup_hierarchy=1`",
        path.display()
    )]
    NoHierarchy {
        /// Where it was looked for.
        path: PathBuf,
    },
}

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside
/// version 1. Where there are several mounts, the one with the shortest path.
///
/// # Errors
/// [`CgroupError`] if there is none.
pub fn find_hierarchy() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path)
        .map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
    hierarchy_in(&mounts).ok_or_else(|| CgroupError::NoHierarchy { path: path.to_owned() })
}

/// How deep below a hierarchy's root the pods' root is looked for: kind has it in a cgroup of the
/// kubelet's own, which may be in one of the node's container.
const DEEPEST: usize = 3;

/// The root of the pods' cgroups, as a kubelet with either driver makes it: `kubepods.slice` or
/// `kubepods`, the latter part of a longer name where the kubelet has a root of its own
/// (`kubelet.slice/kubelet-kubepods.slice`). It is looked for in every hierarchy that is mounted,
/// for a container's own shows nothing of the host's.
///
/// # Errors
/// [`CgroupError`] if there is none.
pub fn find_pods_root() -> Result<PathBuf, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path)
        .map_err(|source| CgroupError::Read { path: path.to_owned(), source })?;
    let paths = hierarchies_in(&mounts);
    if paths.is_empty() {
        return Err(CgroupError::NoHierarchy { path: path.to_owned() });
    }
    let found = paths.iter().find_map(|hierarchy| pods_root_in(hierarchy));
    found.ok_or(CgroupError::NoPods { paths })
}

/// The directory of a cgroup, looked for in every hierarchy that is mounted; none where there is no
/// such cgroup.
///
/// # Errors
/// If the mounts or a hierarchy's root cannot be read.
pub(in crate::kernel) fn find_by_id(id: CgroupId) -> io::Result<Option<PathBuf>> {
    fn below(path: &Path, id: CgroupId) -> io::Result<Option<PathBuf>> {
        for (_, child) in super::directories(path)? {
            if super::id_of(&child).is_ok_and(|found| found == id) {
                return Ok(Some(child));
            }
            // One that has just gone has nothing below it.
            if let Ok(Some(found)) = below(&child, id) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
    for hierarchy in hierarchies_in(&fs::read_to_string("/proc/self/mountinfo")?) {
        if let Some(found) = below(&hierarchy, id)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The shallowest root of pods' cgroups below a directory; of several the one in which processes run,
/// for a kubelet that is given the other driver leaves an empty one.
pub(super) fn pods_root_in(hierarchy: &Path) -> Option<PathBuf> {
    let mut level = vec![hierarchy.to_owned()];
    for _ in 0..DEEPEST {
        let mut below: Vec<(String, PathBuf)> =
            level.iter().flat_map(|path| super::directories(path).unwrap_or_default()).collect();
        below.sort();
        let is_root = |name: &str| {
            let name = name.strip_suffix(".slice").unwrap_or(name);
            name == "kubepods" || name.ends_with("-kubepods")
        };
        let roots: Vec<_> = below.iter().filter(|(name, _)| is_root(name)).collect();
        let populated = roots.iter().find(|(_, path)| is_populated(path));
        if let Some((_, found)) = populated.or(roots.first()) {
            return Some(found.clone());
        }
        level = below.into_iter().map(|(_, path)| path).collect();
    }
    None
}

/// Whether a process runs in the cgroup or below it (cgroup.events, cgroup-v2.rst).
fn is_populated(cgroup: &Path) -> bool {
    let events = fs::read_to_string(cgroup.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

/// The mount point of cgroup v2 in a `mountinfo`; of several the shortest.
pub(super) fn hierarchy_in(mounts: &str) -> Option<PathBuf> {
    hierarchies_in(mounts).into_iter().next()
}

/// The mount points of cgroup v2 in a `mountinfo` (proc_pid_mountinfo(5)), the shortest first.
/// The field after the lone dash is the type.
pub(super) fn hierarchies_in(mounts: &str) -> Vec<PathBuf> {
    let mut paths: Vec<&str> = mounts
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            (kind.split(' ').next()? == "cgroup2").then_some(())?;
            mount.split(' ').nth(4)
        })
        .collect();
    paths.sort_by_key(|path| path.len());
    paths.into_iter().map(|path| PathBuf::from(unescape(path))).collect()
}

/// Undoes the octal escapes of `mountinfo` (space, tab, newline, backslash).
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
