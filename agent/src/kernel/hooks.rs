//! Who is on the hooks that the programs attach to: others may run beside them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;

use super::cgroups::find_hierarchy;
use super::{KernelError, programs};

/// The kernel keeps this much of a program's name (`BPF_OBJ_NAME_LEN`, without the zero).
const NAME_LENGTH: usize = 15;

/// A program on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookedProgram {
    /// Our program for the same hook, whose name says which it is.
    pub hook: &'static str,
    /// The cgroup that it is attached to.
    pub cgroup: PathBuf,
    /// Its id.
    pub id: u32,
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    /// Whether it is one of ours, by its name.
    pub ours: bool,
}

/// The programs on the hooks of the pods' cgroup, and of those around it: they run for pods, too.
///
/// # Errors
/// If they cannot be listed (CAP_BPF or CAP_SYS_ADMIN is needed).
pub fn programs_on_hooks(pods_cgroup: &Path) -> Result<Vec<HookedProgram>, KernelError> {
    let failed = |source: io::Error| {
        KernelError::new(format!("cannot list programs on {}", pods_cgroup.display()), source)
    };
    let hierarchy = find_hierarchy().map_err(|error| failed(io::Error::other(error)))?;
    let names: BTreeMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut found = Vec::new();
    for cgroup in pods_cgroup.ancestors().take_while(|path| path.starts_with(&hierarchy)) {
        for (hook, ids) in programs::attached_to_pods(cgroup).map_err(failed)? {
            for id in ids {
                let name = names.get(&id).cloned().unwrap_or_default();
                let ours = !name.is_empty() && name == hook[..hook.len().min(NAME_LENGTH)];
                found.push(HookedProgram { hook, cgroup: cgroup.to_owned(), id, name, ours });
            }
        }
    }
    Ok(found)
}
