//! The node's kernel: the only place that knows aya. It loads the eBPF programs, pins and adopts
//! them and their maps, brings compiled tables into the maps, reads flows, and cuts connections
//! that a new policy forbids.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, EbpfLoader};
use weft_common::{CONFIG_READY, Config, Offsets, PodId};
use weft_model::compile::Tables;

mod acceleration;
mod addresses;
mod capabilities;
pub mod cgroups;
mod connections;
mod error;
mod flows;
mod hooks;
mod installed;
mod interfaces;
mod lagging;
mod namespace;
mod netlink;
mod object;
mod offsets;
mod own_pod;
mod pins;
mod programs;
mod remains;
mod removal;
mod resize;
mod settings;
mod sockets;
mod status;
mod system;
mod table;
mod tables;

pub use acceleration::{Acceleration, AccelerationMode, AccelerationState};
pub use addresses::NodeAddresses;
pub use capabilities::{CAPABILITIES, Capability, lacking as lacking_capabilities};
pub use cgroups::{CgroupError, CgroupEvent, CgroupId, CgroupWatch, PodCgroup};
pub use connections::CutConnection;
pub use error::{ApplyError, KernelError, OpenError};
pub use flows::{BpfLog, Counters, FlowEvents};
pub use hooks::{HookedProgram, programs_on_hooks};
pub use installed::Installed;
pub use offsets::{OffsetsError, of_this_kernel as offsets_of_this_kernel};
pub use own_pod::announce_own_pod;
pub use pins::mount_bpf_file_system;
pub use programs::ProgramStatus;
pub use remains::Remains;
pub use removal::{HeldConnection, Removed};
pub use settings::{MapSizes, Options, ProxyCgroup, Settings};
pub use status::{MapStatus, Status};
pub(crate) use system::release_memory;
pub use tables::Applied;

use flows::CutEvents;
use lagging::ReaderWaker;
use pins::Pins;
use programs::SOCKETS;
use resize::Resized;
use sockets::PodSockets;
use tables::KernelTables;

/// What this agent has in the kernel. It stays there when this is dropped: see
/// [`Kernel::remove`].
pub struct Kernel {
    options: Options,
    pins: Pins,
    ebpf: Ebpf,
    tables: KernelTables,
    config: Array<MapData, Config>,
    in_force: Config,
    kept: Vec<String>,
    sockets: PodSockets,
    cut_events: CutEvents,
    /// Judges all connections.
    judge: OwnedFd,
    acceleration: Acceleration,
    adopted: bool,
    /// At work until this is dropped.
    _waker: Option<ReaderWaker>,
}

impl Kernel {
    /// Loads the programs and attaches them, or adopts what an earlier agent has left under
    /// `options.pin_dir`: maps with their contents, and links, whose programs are replaced
    /// without a gap. Until the first [`Kernel::apply`] the earlier policy stays in force. Where
    /// there is none, pods that run already are left alone until then, and all others are denied.
    ///
    /// # Errors
    /// If another agent holds the pins, or the kernel refuses something. What was there before
    /// stays.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let root = cgroups::id_of(&options.pods_cgroup).map_err(|source| {
            OpenError::Cgroup(CgroupError::Read { path: options.pods_cgroup.clone(), source })
        })?;
        let maps = object::kept_maps()?;
        let pins = Pins::open(&options.pin_dir, &object::layout(&maps))?;
        let kept: BTreeMap<String, u32> =
            maps.into_iter().map(|(name, (_, size))| (name, size)).collect();
        let (mut acceleration, offsets) = acceleration::decide(options.acceleration);

        let adopted = pins.map("CONFIG").exists();
        let resized = Resized::plan(&pins, &kept, &options.map_sizes)?;
        let path_of = |name: &str| {
            if resized.contains(name) { pins.map_aside(name) } else { pins.map(name) }
        };
        let mut ebpf = load_maps(&options, &kept, path_of, &offsets)?;
        programs::load(&mut ebpf, &options)?;
        let judge = connections::load_judge(&mut ebpf, |name| open_pinned(name, &path_of(name)))?;
        let iterator = match capabilities::report() {
            Some(lacks) => Err(lacks),
            None => lagging::load(&mut ebpf),
        };
        if let Err(lacks) = &iterator {
            acceleration = acceleration.without_waking(lacks);
        }
        tracing::info!(state = ?acceleration.state, reason = acceleration.reason, "acceleration");

        let mut config = array(open_map(&pins, "CONFIG")?)?;
        let before: Config = config.get(&0, 0).map_err(map_error("CONFIG"))?;
        let mut tables = KernelTables::new(|name| open_pinned(name, &path_of(name)))?;
        resized.fill(&pins, &mut tables)?;
        // Until the first tables come, an adopted policy stays as it was; only the cgroup may be
        // another, made anew under the same name.
        let in_force = if adopted {
            Config { root_cgroup: root, ..before }
        } else {
            options.settings.config(root, &acceleration, before)
        };
        config.set(0, in_force, 0).map_err(map_error("CONFIG"))?;
        if !adopted {
            leave_alone(&options.pods_cgroup, &mut tables)?;
        }
        let replaced = programs::attach(&ebpf, &open_map(&pins, SOCKETS)?, &pins, &options)?;
        resized.finish(&pins)?;
        pins.remove_other_layouts()?;
        let waker = match iterator {
            Ok(iterator) => {
                let map = |name| open_map(&pins, name);
                Some(ReaderWaker::start(iterator, &options.pods_cgroup, map)?)
            }
            Err(_) => None,
        };
        tracing::info!(adopted, replaced, "the eBPF programs are attached");
        Ok(Self {
            options,
            pins,
            ebpf,
            tables,
            config,
            in_force,
            kept: kept.into_keys().collect(),
            sockets: PodSockets::default(),
            cut_events: CutEvents::default(),
            judge,
            acceleration,
            adopted,
            _waker: waker,
        })
    }

    /// Whether maps of an earlier agent were adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether a policy is in force, of this agent or an earlier one.
    pub fn has_policy(&self) -> bool {
        self.in_force.flags & CONFIG_READY != 0
    }

    /// The highest id of any kind (pod, class, subject, port table, set of backends, rule) that
    /// the maps have. Ids never get a second meaning: a compiler starts above it.
    pub fn highest_id(&self) -> u32 {
        self.tables.highest_id()
    }

    /// Whether sockets are accelerated, and why.
    pub fn acceleration(&self) -> &Acceleration {
        &self.acceleration
    }

    /// What is in force: its generation and flags.
    pub fn config(&self) -> &Config {
        &self.in_force
    }

    /// Brings compiled tables into the kernel, and makes them a new generation. What has not
    /// changed since is not written.
    ///
    /// # Errors
    /// If a map is full, or the kernel refuses a write: what was in force stays in force.
    pub fn apply(&mut self, tables: &Tables) -> Result<Applied, ApplyError> {
        let mut applied = self.tables.apply(tables)?;
        let mut next = self.next_config();
        // 0 stands for nothing applied yet.
        next.generation = self.in_force.generation.wrapping_add(1).max(1);
        next.flags |= CONFIG_READY;
        self.write_config(next)?;
        applied.generation = next.generation;
        Ok(applied)
    }

    /// Takes other settings, at once. They are part of what [`Kernel::apply`] puts in force.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn configure(&mut self, settings: Settings) -> Result<(), ApplyError> {
        self.options.settings = settings;
        let next = self.next_config();
        self.write_config(next)
    }

    fn next_config(&self) -> Config {
        self.options.settings.config(self.in_force.root_cgroup, &self.acceleration, self.in_force)
    }

    fn write_config(&mut self, config: Config) -> Result<(), ApplyError> {
        self.config
            .set(0, config, 0)
            .map_err(|source| ApplyError::Write { map: "CONFIG", source: Box::new(source) })?;
        self.in_force = config;
        Ok(())
    }

    /// Attaches the programs to the root of the pods' cgroups where that was made anew under its
    /// path: they have gone with the one before.
    ///
    /// # Errors
    /// If there is no such cgroup, or the kernel refuses.
    pub fn follow_pods_cgroup(&mut self) -> Result<(), KernelError> {
        let path = self.options.pods_cgroup.clone();
        let failed = |source: std::io::Error| {
            let what = format!("cannot attach to the pods' cgroup {}", path.display());
            KernelError::new(what, source)
        };
        let root = cgroups::id_of(&path).map_err(failed)?;
        if root == self.in_force.root_cgroup {
            return Ok(());
        }
        programs::attach_to_pods(&self.ebpf, &self.pins, &path).map_err(failed)?;
        let config = Config { root_cgroup: root, ..self.in_force };
        self.write_config(config).map_err(|error| failed(std::io::Error::other(error)))
    }

    /// Tells the programs which pod a cgroup is: [`weft_common::POD_OF_THE_MESH`] for the mesh's
    /// own.
    ///
    /// # Errors
    /// If the map is full.
    pub fn bind_cgroup(&mut self, cgroup: CgroupId, pod: PodId) -> Result<(), ApplyError> {
        self.tables.cgroups.insert(&cgroup, &pod)?;
        self.tables.cgroups.commit();
        Ok(())
    }

    /// Forgets a cgroup.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn unbind_cgroup(&mut self, cgroup: CgroupId) -> Result<(), ApplyError> {
        if let Some(pod) = self.tables.cgroups.installed().get(&cgroup) {
            self.sockets.forget(*pod);
        }
        self.tables.cgroups.remove(&cgroup)?;
        self.tables.cgroups.commit();
        Ok(())
    }

    /// The cgroups that are bound, also by an earlier agent.
    pub fn bound_cgroups(&self) -> &BTreeMap<CgroupId, PodId> {
        self.tables.cgroups.installed()
    }

    /// Attaches the proxy's programs to its cgroup, in the place of an earlier one's. What was
    /// opened with [`ProxyCgroup::Absent`] has none.
    ///
    /// # Errors
    /// If the cgroup is gone, or the kernel refuses.
    pub fn attach_proxy(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        programs::attach_to_proxy(&self.ebpf, &self.pins, cgroup).map_err(|source| {
            KernelError::new(
                format!("cannot attach to the proxy's cgroup {}", cgroup.display()),
                source,
            )
        })?;
        self.options.proxy_cgroup = ProxyCgroup::At(cgroup.to_owned());
        Ok(())
    }

    /// Checks what a pod sends at the host's side of its interface, too, and what reaches it there
    /// without a socket. The hooks stay when the agent ends.
    ///
    /// # Errors
    /// If the interface is gone, or the kernel has no tcx (before Linux 6.6).
    pub fn attach_interface(&mut self, interface: u32, pod: PodId) -> Result<(), KernelError> {
        let failed = |source: std::io::Error| {
            KernelError::new(format!("cannot attach to interface {interface}"), source)
        };
        self.tables
            .interfaces
            .insert(&interface, &pod)
            .map_err(|error| failed(std::io::Error::other(error)))?;
        self.tables.interfaces.commit();
        let attached = programs::attach_to_interface(&self.pins, &self.ebpf, interface);
        if attached.is_err() && programs::count_on_interface(&self.pins, interface) == 0 {
            // Nothing looks there.
            self.forget_interface(interface).map_err(failed)?;
        }
        attached.map_err(failed)
    }

    fn forget_interface(&mut self, interface: u32) -> std::io::Result<()> {
        self.tables.interfaces.remove(&interface).map_err(std::io::Error::other)?;
        self.tables.interfaces.commit();
        Ok(())
    }

    /// Whether the interface is hooked for the pod, by this agent or an earlier one.
    pub fn is_attached(&self, interface: u32, pod: PodId) -> bool {
        self.attached_interfaces().get(&interface) == Some(&pod)
            && programs::count_on_interface(&self.pins, interface) == programs::ON_INTERFACES.len()
    }

    /// Takes the hooks from an interface again, whether it is still there or not.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn detach_interface(&mut self, interface: u32) -> Result<(), KernelError> {
        let failed = |source: std::io::Error| {
            KernelError::new(format!("cannot detach from interface {interface}"), source)
        };
        programs::detach_from_interface(&self.pins, interface).map_err(failed)?;
        self.forget_interface(interface).map_err(failed)
    }

    /// The interfaces that are hooked, also by an earlier agent, and their pods.
    pub fn attached_interfaces(&self) -> &BTreeMap<u32, PodId> {
        self.tables.interfaces.installed()
    }

    /// The network of the pod in `cgroup`; empty while it has no process, where it has the host's
    /// network, and where its interfaces lead elsewhere.
    ///
    /// # Errors
    /// If its namespace cannot be entered or read (the agent needs `hostPID` and CAP_SYS_ADMIN).
    pub fn network_of(cgroup: &Path) -> Result<PodNetwork, KernelError> {
        let failed = |source| {
            KernelError::new(format!("cannot find the interfaces of {}", cgroup.display()), source)
        };
        let Some(pid) = cgroups::find_process(cgroup).map_err(failed)? else {
            return Ok(PodNetwork::default());
        };
        let namespace = namespace::of_process(pid).map_err(failed)?;
        let interfaces = interfaces::leading_into(&namespace).map_err(failed)?;
        let addresses = if interfaces.is_empty() {
            BTreeSet::new()
        } else {
            namespace::inside(&namespace, addresses::of_this_namespace).map_err(failed)?
        };
        Ok(PodNetwork { interfaces, addresses })
    }

    /// The stream of flow events; to be called inside a tokio runtime. One reader at a time gets
    /// each event.
    ///
    /// # Errors
    /// If the ring buffer cannot be mapped.
    pub fn flow_events(&self) -> Result<FlowEvents, KernelError> {
        let failed = |source: std::io::Error| KernelError::new("cannot read flow events", source);
        let map = open_map(&self.pins, "FLOWS").map_err(|e| failed(std::io::Error::other(e)))?;
        let ring = Map::from_map_data(map)
            .and_then(RingBuf::try_from)
            .map_err(|error| failed(std::io::Error::other(error)))?;
        FlowEvents::new(ring, self.cut_events.clone()).map_err(failed)
    }

    /// The programs' own log lines, if the options ask for them and they have any.
    ///
    /// # Errors
    /// If the ring buffer cannot be mapped.
    pub fn bpf_log(&mut self) -> Result<Option<BpfLog>, KernelError> {
        if !self.options.bpf_log {
            return Ok(None);
        }
        BpfLog::new(&mut self.ebpf)
            .map_err(|source| KernelError::new("cannot read the programs' log", source))
    }

    /// The programs' counters, summed over the CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let failed = |source| KernelError::new("cannot read the map COUNTERS", source);
        let map = open_map(&self.pins, "COUNTERS").map_err(|e| failed(std::io::Error::other(e)))?;
        Map::from_map_data(map)
            .and_then(PerCpuArray::try_from)
            .and_then(|map| Counters::read(&map))
            .map_err(|error| failed(std::io::Error::other(error)))
    }
}

/// The network of a pod, as its node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNetwork {
    /// The host's side of its interfaces.
    pub interfaces: Vec<u32>,
    /// The addresses of its interfaces, without those of loopback and of single links.
    pub addresses: BTreeSet<IpAddr>,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Kernel").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Nobody restricts the pods that run already, and they may be what the first policy comes from:
/// the API server and its database are pods, too, on some nodes.
fn leave_alone(pods: &Path, tables: &mut KernelTables) -> Result<(), OpenError> {
    let found = cgroups::find_pods(pods)
        .map_err(|source| CgroupError::Read { path: pods.to_owned(), source })?;
    for pod in found {
        let inserted = tables.cgroups.insert(&pod.id, &weft_common::POD_OF_THE_MESH);
        inserted.map_err(|error| OpenError::LeaveAlone(Box::new(error)))?;
    }
    tables.cgroups.commit();
    Ok(())
}

/// Makes the maps, or takes those that are pinned.
fn load_maps(
    options: &Options,
    kept: &BTreeMap<String, u32>,
    path_of: impl Fn(&str) -> PathBuf,
    offsets: &Offsets,
) -> Result<Ebpf, OpenError> {
    let mut loader = EbpfLoader::new();
    for name in kept.keys() {
        loader.map_pin_path(name, path_of(name));
    }
    for (name, size) in options.map_sizes.iter() {
        loader.map_max_entries(name, size);
    }
    loader.override_global("OFFSETS", offsets, false);
    // 0 turns every log statement off: the verifier drops what cannot be reached.
    let log_level = if options.bpf_log { &u8::MAX } else { &0 };
    loader.override_global(aya_log::LEVEL, log_level, false);
    loader.load(object::OBJECT).map_err(|error| OpenError::Maps(Box::new(error)))
}

fn open_map(pins: &Pins, name: &str) -> Result<MapData, OpenError> {
    open_pinned(name, &pins.map(name))
}

fn open_pinned(name: &str, path: &Path) -> Result<MapData, OpenError> {
    MapData::from_pin(path).map_err(map_error(name))
}

fn array(map: MapData) -> Result<Array<MapData, Config>, OpenError> {
    Map::from_map_data(map).and_then(Array::try_from).map_err(map_error("CONFIG"))
}

fn map_error(name: &str) -> impl Fn(aya::maps::MapError) -> OpenError {
    move |source| OpenError::Map { name: name.to_owned(), source: Box::new(source) }
}
