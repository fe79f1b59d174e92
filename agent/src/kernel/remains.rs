//! What an agent has in the kernel, and what of it is left after its removal: objects are freed
//! some time after their last pin or link has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use aya::maps::{MapInfo, loaded_maps};
use aya::programs::{loaded_links, loaded_programs};

use super::{KernelError, system};

/// Objects in the kernel, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Programs and their names.
    pub programs: BTreeMap<u32, String>,
    /// Maps and their names.
    pub maps: BTreeMap<u32, String>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Remains {
    /// What is held by the pins under `directory`: the maps and links that are pinned, the programs
    /// that use one of those maps (also those without a link), and the other maps of these.
    ///
    /// # Errors
    /// If the kernel does not list its objects (CAP_SYS_ADMIN is needed).
    pub fn pinned_under(directory: &Path) -> Result<Self, KernelError> {
        let mut remains = Self::default();
        remains.add_pins(directory).map_err(|source| {
            KernelError::new(format!("cannot read the pins in {}", directory.display()), source)
        })?;
        let mut others = BTreeSet::new();
        for program in loaded_programs() {
            let Some(program) = listed(program)? else { continue };
            // A program may go while it is looked at.
            let Ok(Some(maps)) = program.map_ids() else { continue };
            if maps.iter().any(|map| remains.maps.contains_key(map)) {
                let name = program.name_as_str().unwrap_or_default().to_owned();
                remains.programs.insert(program.id(), name);
                others.extend(maps);
            }
        }
        for map in loaded_maps() {
            let Some(map) = listed(map)? else { continue };
            if others.contains(&map.id()) {
                remains.maps.insert(map.id(), map.name_as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(remains)
    }

    /// What of it is still in the kernel.
    ///
    /// # Errors
    /// As [`Remains::pinned_under`].
    pub fn left(&self) -> Result<Self, KernelError> {
        let mut left = Self::default();
        for program in loaded_programs() {
            let Some(id) = listed(program)?.map(|program| program.id()) else { continue };
            left.programs.extend(self.programs.get(&id).map(|name| (id, name.clone())));
        }
        for map in loaded_maps() {
            let Some(id) = listed(map)?.map(|map| map.id()) else { continue };
            left.maps.extend(self.maps.get(&id).map(|name| (id, name.clone())));
        }
        for link in loaded_links() {
            let Some(id) = listed(link)?.map(|link| link.id()) else { continue };
            left.links.extend(self.links.get(&id));
        }
        Ok(left)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    fn add_pins(&mut self, directory: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let holds_maps = directory.file_name().is_some_and(|name| name == "maps");
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                self.add_pins(&path)?;
            } else if holds_maps {
                let map = MapInfo::from_pin(&path).map_err(io::Error::other)?;
                self.maps.insert(map.id(), map.name_as_str().unwrap_or_default().to_owned());
            } else {
                self.links.insert(system::link_info(system::open_pin(&path)?)?.id);
            }
        }
        Ok(())
    }
}

/// What the kernel has listed; none where it has gone since it was named, or is still being made
/// (EAGAIN). Others' come and go all the time.
fn listed<T, E>(found: Result<T, E>) -> Result<Option<T>, KernelError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let error = match found {
        Ok(found) => return Ok(Some(found)),
        Err(error) => anyhow::Error::new(error),
    };
    let gone = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock));
    if gone {
        return Ok(None);
    }
    let source = io::Error::other(format!("{error:#}"));
    Err(KernelError::new("cannot list what is in the kernel", source))
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_has_gone_is_left_out_and_a_refusal_is_told() {
        let failed = |kind: io::ErrorKind| {
            let call = SyscallError { call: "bpf_link_get_fd_by_id", io_error: kind.into() };
            listed(Err::<(), _>(aya::programs::ProgramError::from(call)))
        };
        assert!(matches!(failed(io::ErrorKind::NotFound), Ok(None)));
        assert!(matches!(failed(io::ErrorKind::WouldBlock), Ok(None)));
        let refused = failed(io::ErrorKind::PermissionDenied).unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    }
}
