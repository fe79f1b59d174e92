//! The directory in which maps and links outlive the agent:
//! `<pin dir>/layout-<version>-<hash>/{maps,links,interfaces,to-pods}/`.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::programs::FrameWay;
use super::{OpenError, system};

/// `BPF_FS_MAGIC`
const BPF_FILE_SYSTEM: i64 = 0xcafe_4a11;
/// Where a BPF file system is mounted if there is none.
const USUAL_MOUNT: &str = "/sys/fs/bpf";
const LAYOUT_PREFIX: &str = "layout-";
/// Where a layout has the map of the pods' cgroups.
pub(super) const CGROUPS: &str = "maps/CGROUPS";

/// The pins of one layout, locked against other agents.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    layout: PathBuf,
    /// Held as long as this lives: the lock goes with the descriptor.
    _lock: File,
}

impl Pins {
    /// Makes the directory if need be (and mounts the file system), and locks it.
    pub(super) fn open(directory: &Path, layout: &str) -> Result<Self, OpenError> {
        ensure_file_system(directory)?;
        let pins = Self::open_as_it_is(directory, layout)?;
        let interfaces = [FrameWay::FromPod, FrameWay::ToPod].map(|way| pins.interfaces(way));
        for path in [pins.maps(), pins.links()].into_iter().chain(interfaces) {
            fs::create_dir_all(&path).map_err(|source| OpenError::Pin { path, source })?;
        }
        Ok(pins)
    }

    /// Locks a directory that is there, and makes nothing in it.
    pub(super) fn open_as_it_is(directory: &Path, layout: &str) -> Result<Self, OpenError> {
        let lock = lock(directory)?;
        let layout = directory.join(layout);
        Ok(Self { directory: directory.to_owned(), layout, _lock: lock })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.layout.join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where a map is pinned that is to take the place of another.
    pub(super) fn map_aside(&self, name: &str) -> PathBuf {
        // Names with dots are reserved.
        self.maps().join(format!("{name}-new"))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.layout.join("links")
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Where the links of the program for frames of this way are, by interface index.
    pub(super) fn interfaces(&self, way: FrameWay) -> PathBuf {
        self.layout.join(match way {
            FrameWay::FromPod => "interfaces",
            FrameWay::ToPod => "to-pods",
        })
    }

    /// Drops what agents of other layouts have left: to be called when the own is attached.
    pub(super) fn remove_other_layouts(&self) -> Result<(), OpenError> {
        let read = |source| OpenError::Pin { path: self.directory.clone(), source };
        for path in layouts(&self.directory).map_err(read)? {
            if path != self.layout {
                remove_all(&path)?;
                tracing::info!(
                    path = %path.display(),
                    "replaced the programs and maps of an agent with another layout"
                );
            }
        }
        Ok(())
    }
}

/// The layouts that are pinned below `directory`: none where it is not there.
pub(super) fn layouts(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut layouts = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(LAYOUT_PREFIX)) {
            layouts.push(path);
        }
    }
    Ok(layouts)
}

/// Removes everything below `directory`. Links are detached first: where a link is only unpinned,
/// its program runs on until the kernel comes to free it (a grace period and a work queue later),
/// and as long as anybody has it open, be it for a look or in a process between fork and exec.
pub(super) fn remove_all(directory: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Pin { path: directory.to_owned(), source };
    detach_links(directory).map_err(failed)?;
    fs::remove_dir_all(directory).map_err(failed)
}

/// Detaches every link that is pinned below `directory`.
pub(super) fn detach_links(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            detach_links(&entry.path())?;
        } else {
            system::detach_link(system::open_pin(&entry.path())?)?;
        }
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Pin { path: directory.to_owned(), source };
    let file = File::open(directory).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(OpenError::AnotherAgent { directory: directory.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}

fn ensure_file_system(directory: &Path) -> Result<(), OpenError> {
    if directory.starts_with(USUAL_MOUNT) {
        mount_at(Path::new(USUAL_MOUNT))?;
    }
    fs::create_dir_all(directory)
        .map_err(|source| OpenError::Pin { path: directory.to_owned(), source })?;
    if is_bpf(directory)? {
        Ok(())
    } else {
        Err(OpenError::NotBpf { directory: directory.to_owned() })
    }
}

/// Mounts a BPF file system at `/sys/fs/bpf`, if there is none. Returns whether it had to.
///
/// # Errors
/// If the kernel refuses (CAP_SYS_ADMIN is needed).
pub fn mount_bpf_file_system() -> Result<bool, OpenError> {
    mount_at(Path::new(USUAL_MOUNT))
}

fn mount_at(point: &Path) -> Result<bool, OpenError> {
    if is_bpf(point)? {
        return Ok(false);
    }
    let failed = |source| OpenError::Mount { path: point.to_owned(), source };
    // Two agents that start together must not mount one over the other: the second one's mount
    // would hide the first one's pins.
    let below = File::open(point).map_err(failed)?;
    flock(&below, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    if is_bpf(point)? {
        return Ok(false);
    }
    mount("bpf", point, "bpf", MountFlags::empty(), None::<&CStr>)
        .map(|()| true)
        .map_err(|error| failed(error.into()))
}

fn is_bpf(path: &Path) -> Result<bool, OpenError> {
    statfs(path)
        .map(|status| status.f_type == BPF_FILE_SYSTEM)
        .map_err(|error| OpenError::Pin { path: path.to_owned(), source: io::Error::from(error) })
}
