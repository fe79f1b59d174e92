//! The agent's own pod, before its programs are there.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use weft_common::{POD_OF_THE_MESH, PodId};

use super::pins::{CGROUPS, layouts};
use super::{CgroupId, KernelError};

/// Tells the programs that an earlier agent has left under `pin_dir` that a cgroup is of the mesh's
/// own pod. Until they know it they let it connect nowhere, to the API server neither.
///
/// # Errors
/// If the pins cannot be read, or the kernel refuses the write.
pub fn announce_own_pod(pin_dir: &Path, cgroup: CgroupId) -> Result<(), KernelError> {
    let failed = |source| KernelError::new("cannot announce the agent's own pod", source);
    for layout in layouts(pin_dir).map_err(failed)? {
        let map = layout.join(CGROUPS);
        if fs::exists(&map).map_err(failed)? {
            bind(&map, cgroup).map_err(|error| failed(io::Error::other(error)))?;
        }
    }
    Ok(())
}

fn bind(map: &Path, cgroup: CgroupId) -> Result<(), MapError> {
    let map = Map::from_map_data(MapData::from_pin(map)?)?;
    let mut pods: HashMap<MapData, CgroupId, PodId> = map.try_into()?;
    pods.insert(cgroup, POD_OF_THE_MESH, 0)
}
