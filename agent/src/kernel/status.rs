//! What is in the kernel, for people to look at.

use std::collections::BTreeMap;
use std::io;

use aya::maps::{MapInfo, MapType};

use super::{Acceleration, Kernel, KernelError, ProgramStatus, programs, system};

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapStatus {
    /// Its name.
    pub name: String,
    /// How many entries it has; none where they are not counted (arrays, ring buffers, storage of
    /// sockets).
    pub entries: Option<u32>,
    /// How many it may have (bytes of a ring buffer).
    pub capacity: u32,
}

/// What the agent has in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The generation of policy in force; 0: none yet.
    pub generation: u32,
    /// Whether maps of an earlier agent were adopted.
    pub adopted: bool,
    /// Whether sockets are accelerated, and why.
    pub acceleration: Acceleration,
    /// The programs, with their ids and hooks.
    pub programs: Vec<ProgramStatus>,
    /// Ids of all programs on the hooks of the pods' cgroup, others' too, by our program's name.
    pub on_pods_cgroup: BTreeMap<&'static str, Vec<u32>>,
    /// The maps.
    pub maps: Vec<MapStatus>,
}

impl Kernel {
    /// What is in the kernel.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn status(&self) -> Result<Status, KernelError> {
        let failed = |source| KernelError::new("cannot read the state of the kernel", source);
        Ok(Status {
            generation: self.in_force.generation,
            adopted: self.adopted,
            acceleration: self.acceleration.clone(),
            programs: programs::status(&self.ebpf, &self.pins, &self.options).map_err(failed)?,
            on_pods_cgroup: programs::attached_to_pods(&self.options.pods_cgroup)
                .map_err(failed)?,
            maps: self.maps().map_err(failed)?,
        })
    }

    fn maps(&self) -> io::Result<Vec<MapStatus>> {
        let known = self.tables.use_of_maps();
        let mut found = Vec::new();
        for name in &self.kept {
            let (entries, capacity) = match known.get(name.as_str()) {
                Some((entries, capacity)) => (Some(*entries), *capacity),
                None => self.use_of(name)?,
            };
            found.push(MapStatus { name: name.clone(), entries, capacity });
        }
        Ok(found)
    }

    /// Counts the entries of a map that the programs write.
    fn use_of(&self, name: &str) -> io::Result<(Option<u32>, u32)> {
        let info = MapInfo::from_pin(self.pins.map(name)).map_err(io::Error::other)?;
        let counted = matches!(
            info.map_type().map_err(io::Error::other)?,
            MapType::Hash | MapType::LruHash | MapType::SockHash
        );
        let entries = if counted {
            let map = info.fd().map_err(io::Error::other)?;
            Some(system::count_keys(&map, info.key_size(), info.max_entries())?)
        } else {
            None
        };
        Ok((entries, info.max_entries()))
    }
}
