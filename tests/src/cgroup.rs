use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

/// How the kubelet and the runtime name cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupDriver {
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-…scope`
    #[default]
    Systemd,
    /// `kubepods/burstable/pod<uid>/<id>`
    Cgroupfs,
}

/// Quality of service class of a pod; it says where its cgroup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Qos {
    /// Directly below the root of the pods.
    Guaranteed,
    /// In a cgroup of its class.
    #[default]
    Burstable,
    /// In a cgroup of its class.
    BestEffort,
}

impl CgroupDriver {
    /// The root of the pods, below the node's branch.
    pub fn root(self) -> &'static str {
        match self {
            Self::Systemd => "kubepods.slice",
            Self::Cgroupfs => "kubepods",
        }
    }

    /// The cgroup of a pod, below the root of the pods.
    pub fn pod(self, qos: Qos, uid: &str) -> PathBuf {
        let class = match qos {
            Qos::Guaranteed => None,
            Qos::Burstable => Some("burstable"),
            Qos::BestEffort => Some("besteffort"),
        };
        match (self, class) {
            (Self::Systemd, class) => {
                // systemd reads "-" as a step down in the hierarchy of slices.
                let uid = uid.replace('-', "_");
                match class {
                    None => format!("kubepods-pod{uid}.slice").into(),
                    Some(class) => {
                        format!("kubepods-{class}.slice/kubepods-{class}-pod{uid}.slice").into()
                    }
                }
            }
            (Self::Cgroupfs, None) => format!("pod{uid}").into(),
            (Self::Cgroupfs, Some(class)) => format!("{class}/pod{uid}").into(),
        }
    }

    /// The cgroup of a container, below its pod's.
    pub fn container(self, id: &str) -> String {
        match self {
            Self::Systemd => format!("cri-containerd-{id}.scope"),
            Self::Cgroupfs => id.to_owned(),
        }
    }
}

/// Where cgroup v2 is mounted: beside the controllers of v1 it is not at `/sys/fs/cgroup`.
pub(crate) fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    find_mount(&mounts).context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Reads mountinfo (proc(5)): the mount point is the fifth field, the type follows " - ".
fn find_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then_some(())?;
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Makes a cgroup and those above it.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make cgroup {}", path.display()))
}

/// Opens `cgroup.procs` for a process that is to be moved there.
pub(crate) fn open_procs(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("cgroup {} is gone", cgroup.display()))
}

/// Kills every process in and below a cgroup, waits for their end, and removes it.
pub(crate) fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    kill(path)?;
    remove_tree(path)
}

/// Kills every process in and below a cgroup, waits for their end, and removes what is below it.
pub(crate) fn clear(path: &Path) -> Result<()> {
    kill(path)?;
    remove_below(path)
}

fn kill(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot kill what runs in {}", path.display()))?;
    await_empty(path)
}

/// Waits until no process is left; the kernel tells by POLLPRI on `cgroup.events`.
fn await_empty(path: &Path) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(60);
    let deadline = Instant::now() + LIMIT;
    let events = path.join("cgroup.events");
    loop {
        let file = File::open(&events)?;
        if std::io::read_to_string(&file)?.contains("populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("processes in {} outlived their kill by {LIMIT:?}", path.display());
        }
        let timeout = Timespec::try_from(left.min(Duration::from_millis(50)))?;
        poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout))?;
    }
}

fn remove_below(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_tree(path: &Path) -> Result<()> {
    remove_below(path)?;
    fs::remove_dir(path).with_context(|| format!("cannot remove cgroup {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_beside_v1() {
        let mounts = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount("36 31 0:33 / / rw shared:1 - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn names_cgroups_as_a_kubelet_does() {
        let uid = "0a-1b";
        let of = |driver: CgroupDriver, qos| driver.pod(qos, uid).display().to_string();
        assert_eq!(
            of(CgroupDriver::Systemd, Qos::Burstable),
            "kubepods-burstable.slice/kubepods-burstable-pod0a_1b.slice"
        );
        assert_eq!(of(CgroupDriver::Systemd, Qos::Guaranteed), "kubepods-pod0a_1b.slice");
        assert_eq!(of(CgroupDriver::Cgroupfs, Qos::BestEffort), "besteffort/pod0a-1b");
        assert_eq!(of(CgroupDriver::Cgroupfs, Qos::Guaranteed), "pod0a-1b");
    }
}
