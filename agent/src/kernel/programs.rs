//! The programs: where each is attached, and how one takes another's place.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use aya::maps::MapData;
use aya::programs::Program;
use aya::{Btf, Ebpf};
use aya_obj::generated::bpf_attach_type::{self, *};

use super::pins::Pins;
use super::system::{self, Target};
use super::{OpenError, Options, ProxyCgroup};

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// The root of the pods' cgroups.
    Pods(bpf_attach_type),
    /// The proxy's cgroup.
    Proxy(bpf_attach_type),
    /// The map of sockets.
    Sockets,
    /// The host's side of every pod's interface.
    Interfaces(FrameWay),
}

/// Which way a frame goes through the host's side of a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameWay {
    FromPod,
    ToPod,
}

impl FrameWay {
    /// As the host sees it.
    fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::FromPod => BPF_TCX_INGRESS,
            Self::ToPod => BPF_TCX_EGRESS,
        }
    }
}

/// The map to which `redirect` is attached.
pub(super) const SOCKETS: &str = "SOCKETS";
/// The programs on pods' interfaces.
pub(super) const ON_INTERFACES: [(&str, FrameWay); 2] =
    [("pod_interface", FrameWay::FromPod), ("to_pod_interface", FrameWay::ToPod)];

/// Every program that is attached for good, by name.
const HOOKS: &[(&str, Hook)] = &[
    ("pod_sock_ops", Hook::Pods(BPF_CGROUP_SOCK_OPS)),
    ("pod_connect4", Hook::Pods(BPF_CGROUP_INET4_CONNECT)),
    ("pod_connect6", Hook::Pods(BPF_CGROUP_INET6_CONNECT)),
    ("pod_sendmsg4", Hook::Pods(BPF_CGROUP_UDP4_SENDMSG)),
    ("pod_sendmsg6", Hook::Pods(BPF_CGROUP_UDP6_SENDMSG)),
    ("pod_recvmsg4", Hook::Pods(BPF_CGROUP_UDP4_RECVMSG)),
    ("pod_recvmsg6", Hook::Pods(BPF_CGROUP_UDP6_RECVMSG)),
    ("pod_getpeername4", Hook::Pods(BPF_CGROUP_INET4_GETPEERNAME)),
    ("pod_getpeername6", Hook::Pods(BPF_CGROUP_INET6_GETPEERNAME)),
    ("pod_ingress", Hook::Pods(BPF_CGROUP_INET_INGRESS)),
    ("pod_egress", Hook::Pods(BPF_CGROUP_INET_EGRESS)),
    ("proxy_connect4", Hook::Proxy(BPF_CGROUP_INET4_CONNECT)),
    ("proxy_connect6", Hook::Proxy(BPF_CGROUP_INET6_CONNECT)),
    ("proxy_sock_ops", Hook::Proxy(BPF_CGROUP_SOCK_OPS)),
    ("proxy_getsockopt", Hook::Proxy(BPF_CGROUP_GETSOCKOPT)),
    ("proxy_setsockopt", Hook::Proxy(BPF_CGROUP_SETSOCKOPT)),
    ("redirect", Hook::Sockets),
    (ON_INTERFACES[0].0, Hook::Interfaces(ON_INTERFACES[0].1)),
    (ON_INTERFACES[1].0, Hook::Interfaces(ON_INTERFACES[1].1)),
];

/// A program as `status()` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// Its id in the kernel.
    pub id: u32,
    /// What it is attached to: a cgroup's path, a map or interfaces.
    pub attached_to: String,
}

/// Loads every program of the object that has a hook. The verifier looks at each, which takes up
/// to a second; it looks at several at once.
pub(super) fn load(ebpf: &mut Ebpf, options: &Options) -> Result<(), OpenError> {
    for (name, _) in HOOKS {
        if ebpf.program(name).is_none() {
            return Err(OpenError::NoProgram { name });
        }
    }
    let wanted: Vec<(&str, &mut Program)> = ebpf
        .programs_mut()
        .filter(|(name, _)| {
            HOOKS.iter().any(|(hooked, hook)| hooked == name && wanted(*hook, options))
        })
        .collect();
    let queue = Mutex::new(wanted);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some((name, program)) = next() {
            load_one(name, program)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        let loading: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        loading.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn wanted(hook: Hook, options: &Options) -> bool {
    !matches!(hook, Hook::Proxy(_)) || options.proxy_cgroup != ProxyCgroup::Absent
}

/// Loads a program, whatever its type.
pub(super) fn load_one(name: &str, program: &mut Program) -> Result<(), OpenError> {
    let loaded = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return Err(OpenError::ProgramType { name: name.to_owned() }),
    };
    loaded.map_err(|source| OpenError::Load { name: name.to_owned(), source: source.into() })
}

/// Loads an iterator's program, which goes through all that is called `over`. It runs when it is
/// told to.
pub(super) fn load_iterator(
    ebpf: &mut Ebpf,
    name: &str,
    over: &str,
    target: Target<'_>,
) -> io::Result<OwnedFd> {
    let Some(Program::Iter(program)) = ebpf.program_mut(name) else {
        return Err(io::Error::other("the embedded eBPF object lacks it"));
    };
    let types = Btf::from_sys_fs().map_err(io::Error::other)?;
    program.load(over, &types).map_err(io::Error::other)?;
    let program = program.fd().map_err(io::Error::other)?;
    system::create_link(program.as_fd(), target, BPF_TRACE_ITER)
}

/// Attaches every program, or puts it in the place of the one that an earlier agent has left.
/// Returns how many took another's place.
pub(super) fn attach(
    ebpf: &Ebpf,
    sockets: &MapData,
    pins: &Pins,
    options: &Options,
) -> Result<usize, OpenError> {
    let mut replaced = 0;
    for (name, hook) in HOOKS {
        if !wanted(*hook, options) {
            continue;
        }
        let program = ebpf.program(name).ok_or(OpenError::NoProgram { name })?;
        let descriptor = program.fd().map_err(|source| OpenError::Load {
            name: (*name).to_owned(),
            source: source.into(),
        })?;
        let failed =
            |to: String| move |source| OpenError::Attach { name: (*name).to_owned(), to, source };
        match hook {
            Hook::Pods(attach_type) => {
                let cgroup = &options.pods_cgroup;
                replaced += attach_to_cgroup(pins, name, descriptor, cgroup, *attach_type)
                    .map_err(failed(cgroup.display().to_string()))?;
            }
            Hook::Proxy(attach_type) => {
                let done = match options.proxy_cgroup.path() {
                    Some(cgroup) => attach_to_cgroup(pins, name, descriptor, cgroup, *attach_type),
                    // The proxy of an earlier agent may still be at work.
                    None => replace_on_cgroup(pins, name, descriptor),
                };
                replaced += done.map_err(failed("the proxy's cgroup".to_owned()))?;
            }
            Hook::Sockets => {
                system::attach_to_map(descriptor, sockets.fd(), BPF_SK_MSG_VERDICT)
                    .map_err(failed(format!("map {SOCKETS}")))?;
            }
            Hook::Interfaces(way) => {
                replaced += replace_on_interfaces(pins, *way, descriptor)
                    .map_err(failed("the pods' interfaces".to_owned()))?;
            }
        }
    }
    Ok(replaced)
}

/// Attaches the proxy's programs to its cgroup, where they are not there already.
pub(super) fn attach_to_proxy(ebpf: &Ebpf, pins: &Pins, cgroup: &Path) -> io::Result<()> {
    attach_where(ebpf, pins, cgroup, |hook| match hook {
        Hook::Proxy(attach_type) => Some(attach_type),
        _ => None,
    })
}

/// Attaches the pods' programs to the root of their cgroups, where they are not there already.
pub(super) fn attach_to_pods(ebpf: &Ebpf, pins: &Pins, cgroup: &Path) -> io::Result<()> {
    attach_where(ebpf, pins, cgroup, |hook| match hook {
        Hook::Pods(attach_type) => Some(attach_type),
        _ => None,
    })
}

fn attach_where(
    ebpf: &Ebpf,
    pins: &Pins,
    cgroup: &Path,
    attach_type: impl Fn(Hook) -> Option<bpf_attach_type>,
) -> io::Result<()> {
    for (name, hook) in HOOKS {
        let Some(attach_type) = attach_type(*hook) else { continue };
        let program = ebpf
            .program(name)
            .ok_or_else(|| io::Error::other(format!("the object has no program {name}")))?
            .fd()
            .map_err(io::Error::other)?;
        attach_to_cgroup(pins, name, program, cgroup, attach_type)?;
    }
    Ok(())
}

/// Puts a program into the link that an earlier agent has left, if it has.
fn replace_on_cgroup(pins: &Pins, name: &str, program: impl AsFd) -> io::Result<usize> {
    match system::open_pin(&pins.link(name)) {
        // Of a cgroup that is gone: the next attachment takes its place.
        Ok(link) if system::link_info(&link)?.cgroup == 0 => Ok(0),
        Ok(link) => system::update_link(&link, program).map(|()| 1),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Returns 1 where a program was replaced, 0 where it is attached anew.
fn attach_to_cgroup(
    pins: &Pins,
    name: &str,
    program: impl AsFd,
    cgroup: &Path,
    attach_type: bpf_attach_type,
) -> io::Result<usize> {
    let directory = File::open(cgroup)?;
    let path = pins.link(name);
    match system::open_pin(&path) {
        Ok(link) => {
            if system::link_info(&link)?.cgroup == super::cgroups::id_of(cgroup)? {
                system::update_link(&link, program)?;
                return Ok(1);
            }
            // The cgroup was made anew, or another is asked for: the new link first, so that at
            // no time there is none.
            let fresh =
                system::create_link(program, Target::Cgroup(directory.as_fd()), attach_type)?;
            let aside = pins.link(&format!("{name}-new"));
            remove_if_there(&aside)?;
            system::pin(fresh, &aside)?;
            fs::rename(&aside, &path)?;
            system::detach_link(link)?;
            Ok(0)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link =
                system::create_link(program, Target::Cgroup(directory.as_fd()), attach_type)?;
            system::pin(link, &path)?;
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts the program on the interfaces in the place of the earlier one; links of interfaces that
/// are gone go too.
fn replace_on_interfaces(pins: &Pins, way: FrameWay, program: impl AsFd) -> io::Result<usize> {
    let mut replaced = 0;
    for entry in fs::read_dir(pins.interfaces(way))? {
        let path = entry?.path();
        let link = system::open_pin(&path)?;
        let info = system::link_info(&link)?;
        if info.interface == 0 {
            fs::remove_file(&path)?;
        } else {
            system::update_link(&link, &program)?;
            replaced += 1;
        }
    }
    Ok(replaced)
}

/// Attaches the programs for frames to an interface, between it and the host's network stack,
/// where they are not there already. The links are pinned.
pub(super) fn attach_to_interface(pins: &Pins, ebpf: &Ebpf, interface: u32) -> io::Result<()> {
    for (name, way) in ON_INTERFACES {
        let path = pins.interfaces(way).join(interface.to_string());
        match system::open_pin(&path) {
            Ok(link) if system::link_info(&link)?.interface == interface => continue,
            Ok(_) => fs::remove_file(&path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let program = ebpf
            .program(name)
            .ok_or_else(|| io::Error::other(format!("the object has no program {name}")))?
            .fd()
            .map_err(io::Error::other)?;
        let link = system::create_link(program, Target::Interface(interface), way.attach_type())?;
        system::pin(link, &path)?;
    }
    Ok(())
}

/// How many of the programs for frames an interface has. Some, and not all, where an earlier agent
/// had fewer, or attaching them failed half-way.
pub(super) fn count_on_interface(pins: &Pins, interface: u32) -> usize {
    ON_INTERFACES
        .iter()
        .filter(|(_, way)| pins.interfaces(*way).join(interface.to_string()).exists())
        .count()
}

/// Detaches the programs for frames from an interface.
pub(super) fn detach_from_interface(pins: &Pins, interface: u32) -> io::Result<()> {
    for (_, way) in ON_INTERFACES {
        let path = pins.interfaces(way).join(interface.to_string());
        match system::open_pin(&path) {
            Ok(link) => {
                system::detach_link(link)?;
                fs::remove_file(&path)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The interfaces that have the program for frames of this way.
fn interfaces(pins: &Pins, way: FrameWay) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pins.interfaces(way))? {
        let link = system::open_pin(&entry?.path())?;
        let interface = system::link_info(&link)?.interface;
        if interface != 0 {
            found.push(interface);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The programs, with their ids and hooks.
pub(super) fn status(
    ebpf: &Ebpf,
    pins: &Pins,
    options: &Options,
) -> io::Result<Vec<ProgramStatus>> {
    let mut found = Vec::new();
    for (name, hook) in HOOKS {
        let Some(program) = ebpf.program(name) else { continue };
        let Ok(descriptor) = program.fd() else { continue };
        let attached_to = match hook {
            Hook::Pods(_) => options.pods_cgroup.display().to_string(),
            Hook::Proxy(_) => match options.proxy_cgroup.path() {
                Some(cgroup) => cgroup.display().to_string(),
                None => continue,
            },
            Hook::Sockets => format!("map {SOCKETS}"),
            Hook::Interfaces(way) => format!("{} interfaces", interfaces(pins, *way)?.len()),
        };
        let id = system::program_id(descriptor)?;
        found.push(ProgramStatus { name: (*name).to_owned(), id, attached_to });
    }
    Ok(found)
}

/// How many programs are attached to each hook of the pods' cgroup, ours and others'
/// (`weft check` says who else is there).
pub(super) fn attached_to_pods(pods_cgroup: &Path) -> io::Result<BTreeMap<&'static str, Vec<u32>>> {
    let directory = File::open(pods_cgroup)?;
    let mut found = BTreeMap::new();
    for (name, hook) in HOOKS {
        if let Hook::Pods(attach_type) = hook {
            found.insert(*name, system::attached_programs(&directory, *attach_type)?);
        }
    }
    Ok(found)
}
