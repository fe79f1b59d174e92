use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

/// The mount point of cgroup v2 in a `mountinfo` (proc_pid_mountinfo(5)). The field after the
/// lone dash is the type.
pub(super) fn hierarchy_in(mounts: &str) -> Option<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            (kind.split(' ').next()? == "cgroup2").then_some(())?;
            mount.split(' ').nth(4)
        })
        .min_by_key(|path| path.len())
        .map(|path| PathBuf::from(unescape(path)))
}

/// Undoes the octal escapes of `mountinfo` (space, tab, newline, backslash).
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
