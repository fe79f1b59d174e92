//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

use super::CgroupError;

/// Why the programs could not be loaded, attached or adopted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded object is not one that aya reads.
    #[error("the embedded eBPF object cannot be read: {0}")]
    Object(String),
    /// The kernel or the loader refuses the object as a whole.
    #[error(
        "the kernel does not take the eBPF maps and types: {0} \
         (CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are needed)"
    )]
    Maps(#[source] Box<aya::EbpfError>),
    /// The verifier refuses a program.
    #[error("the kernel does not take the eBPF program {name}: {source}")]
    Load {
        /// The program.
        name: String,
        /// What the kernel says.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program.
    #[error("the embedded eBPF object has no program {name}: build it with `cargo xtask build`")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The object has a program of a type that is not expected.
    #[error("the eBPF program {name} is of a type that the agent does not load")]
    ProgramType {
        /// The program.
        name: String,
    },
    /// The object lacks a map.
    #[error("the embedded eBPF object has no map {name}: build it with `cargo xtask build`")]
    NoMap {
        /// The map.
        name: String,
    },
    /// A map cannot be used.
    #[error("the eBPF map {name} cannot be used: {source}")]
    Map {
        /// The map.
        name: String,
        /// Why not.
        source: Box<aya::maps::MapError>,
    },
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    /// A program cannot be attached.
    #[error("the eBPF program {name} cannot be attached to {to}: {source}")]
    Attach {
        /// The program.
        name: String,
        /// The cgroup, map or interface.
        to: String,
        /// Why not.
        source: io::Error,
    },
    /// Another agent uses the same pins.
    #[error(
        "another agent is running with the pins in {}: stop it, or give this one a directory \
         of its own (`--pin-dir`)",
        directory.display()
    )]
    AnotherAgent {
        /// The pin directory.
        directory: PathBuf,
    },
    /// The pin directory is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: mount one (`mount -t bpf bpf DIR`), or use a directory \
         below /sys/fs/bpf",
        directory.display()
    )]
    NotBpf {
        /// The pin directory.
        directory: PathBuf,
    },
    /// The BPF file system cannot be mounted.
    #[error("cannot mount a BPF file system at {}: {source}", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A pin, or the directory of them, cannot be made, read or removed.
    #[error("cannot use the pin {}: {source}", path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Sockets cannot be taken out of the map of sockets.
    #[error("accelerated connections cannot go over to TCP: {0} (Linux 5.15 has what it needs)")]
    Leave(#[source] io::Error),
    /// An adopted map cannot be given another size.
    #[error("an adopted map cannot be copied into one of another size: {0}")]
    Resize(#[source] Box<ApplyError>),
    /// The pods that run already are too many.
    #[error("the pods that run already cannot be left alone: {0}")]
    LeaveAlone(#[source] Box<ApplyError>),
    /// The pods' or the proxy's cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Why tables, or what belongs to them, could not be brought into the kernel. What was in force
/// stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A map is too small.
    #[error(
        "the eBPF map {map} is full: it holds {size} entries and needs {needed} while the change \
         is made (the last good state stays in force); raise `--map-size {map}=N`"
    )]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries it may have.
        size: u32,
        /// How many it would have to hold.
        needed: usize,
    },
    /// The kernel refuses a write.
    #[error("cannot write the eBPF map {map}: {source}")]
    Write {
        /// The map.
        map: &'static str,
        /// Why not.
        source: Box<aya::maps::MapError>,
    },
}

/// Why something could not be read from the kernel, or done to a pod.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct KernelError {
    /// What was tried, with the name of what it was tried on.
    pub what: String,
    /// Why it failed.
    pub source: io::Error,
}

impl KernelError {
    pub(super) fn new(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), source: source.into() }
    }
}
