//! Giving up everything that the proxy does not need, before it serves anything.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, getuid, set_dumpable_behavior,
    setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// The user and group that the proxy runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    uid: u32,
    gid: u32,
}

impl FromStr for User {
    type Err = anyhow::Error;

    /// `UID`, or `UID:GID`; without a group it is the user's number. Neither may be 0.
    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| {
            part.parse::<u32>().with_context(|| format!("{part:?} is not a number: UID[:GID]"))
        };
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (number(uid)?, number(gid)?),
            None => (number(text)?, number(text)?),
        };
        // The highest number means "unchanged" to the kernel.
        if [uid, gid].iter().any(|id| matches!(*id, 0 | u32::MAX)) {
            bail!("{text:?}: the proxy does not run as root: choose another number");
        }
        Ok(Self { uid, gid })
    }
}

/// Becomes `user` if started as root, and in any case gives up supplementary groups (as root),
/// all capabilities, and the possibility of ever getting one (`no_new_privs`).
///
/// Must be called while the process has one thread: in Linux these belong to threads, and new
/// threads inherit them.
///
/// # Errors
/// Whatever could not be given up: the proxy must not go on.
pub fn drop_privileges(user: User) -> Result<()> {
    let was_root = getuid().is_root();
    if was_root {
        // Beyond the last capability that the kernel knows it answers EINVAL.
        for capability in CapabilitySet::all() {
            if remove_capability_from_bounding_set(capability).is_err() {
                break;
            }
        }
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        set_thread_groups(&[]).context("cannot drop supplementary groups")?;
        set_thread_res_gid(gid, gid, gid).with_context(|| format!("cannot become group {gid}"))?;
        set_thread_res_uid(uid, uid, uid).with_context(|| format!("cannot become user {uid}"))?;
    }
    clear_ambient_capability_set().context("cannot clear ambient capabilities")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("cannot clear capabilities")?;
    set_no_new_privs(true).context("cannot set no_new_privs")?;
    // Keys are in memory: no core dump, no ptrace by another process of the same user.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot forbid core dumps")?;
    if getuid().is_root() {
        bail!("still root after having become user {}", user.uid);
    }
    Ok(())
}

/// Raises the bound on open files as far as it goes, and returns it: every connection is one, on
/// either node. Called before privileges are dropped; with fewer the proxy runs all the same.
pub fn raise_open_files() -> u64 {
    const WANTED: u64 = 1 << 20;
    let current = getrlimit(Resource::Nofile);
    let wanted = current.maximum.map_or(WANTED, |maximum| maximum.max(WANTED));
    // Only root may go beyond the maximum, and not everywhere.
    for bound in [Some(wanted), current.maximum] {
        if setrlimit(Resource::Nofile, Rlimit { current: bound, maximum: bound }).is_ok() {
            break;
        }
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
