use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use weft_agent::kernel::{Kernel, OpenError, Options, Removed, cgroups};
use weft_common::{
    ADDRESS_LOCAL, ADDRESS_MESHED, Address, AddressEntry, Decision, POD_ACCELERATE, POD_ENROLLED,
    Pod, PolicyEntry, PortKey, Reason,
};
use weft_model::compile::{LocalPod, Tables};
use weft_model::mesh::Name;

/// A pods' root cgroup and a pin directory.
pub struct Fixture {
    pub root: PathBuf,
    pub pins: PathBuf,
}

impl Fixture {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("weft-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = cgroups::find_hierarchy().unwrap().join(&name);
        fs::create_dir(&root).unwrap();
        Self { root, pins: Path::new("/sys/fs/bpf").join(name) }
    }

    pub fn options(&self) -> Options {
        Options::new(&self.pins, &self.root)
    }

    pub fn open(&self) -> Kernel {
        open(&self.options())
    }

    /// Makes a cgroup below the root.
    pub fn cgroup(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

/// Loads and attaches the programs.
pub fn open(options: &Options) -> Kernel {
    unlocked(|| Kernel::open(options.clone())).unwrap()
}

/// Removes what has been pinned.
pub fn remove(pins: &Path) -> Removed {
    unlocked(|| Kernel::remove(pins)).unwrap()
}

/// Does what needs the lock of an agent that has ended. A process that another test is just
/// starting has a copy of what this one had open, and so the lock, until it runs its program.
fn unlocked<T>(mut act: impl FnMut() -> Result<T, OpenError>) -> anyhow::Result<T> {
    Ok(weft_tests::eventually("the lock of the pins", || match act() {
        Err(OpenError::AnotherAgent { .. }) => None,
        done => Some(done),
    })??)
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Err(error) = unlocked(|| Kernel::remove(&self.pins)) {
            eprintln!("{error}");
        }
        remove_cgroups(&self.root);
    }
}

fn remove_cgroups(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    // Processes that were killed a moment ago may still be there.
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => return,
        }
    }
}

/// The /32 of an address.
pub fn host(address: &str) -> (u8, Address) {
    (128, address.parse::<IpAddr>().unwrap().into())
}

/// A pod of the mesh.
pub fn pod(id: u32, uid: &str, address: &str, ingress_subject: u32) -> LocalPod {
    let v4 = Address::from(address.parse::<IpAddr>().unwrap()).v4();
    LocalPod {
        id,
        uid: Arc::from(uid),
        entry: Pod {
            ingress_subject,
            egress_subject: 0,
            flags: POD_ENROLLED | POD_ACCELERATE,
            v4,
            v6: Address::UNSPECIFIED,
        },
    }
}

/// Tables with these pods, and with subject `subject`, which everyone may reach or nobody.
pub fn tables(pods: Vec<LocalPod>, subject: u32, allow: bool) -> Tables {
    let decision =
        if allow { Decision::of(1, Reason::Rule) } else { Decision::of(1, Reason::RuleDenies) };
    let mut tables = Tables::default();
    for pod in pods {
        for address in [Address::from_v4(pod.entry.v4), pod.entry.v6] {
            if !address.is_unspecified() {
                let flags = ADDRESS_LOCAL | ADDRESS_MESHED;
                let entry = AddressEntry { class: 100, flags, pod: pod.id, plain: 0 };
                tables.addresses.insert((128, address), entry);
            }
        }
        tables.pods.insert(name(pod.id), pod);
    }
    for proven in [0, 1] {
        tables.policy.insert((subject, proven), PolicyEntry { ports: subject + 1, decision });
    }
    tables.ports = BTreeMap::from([(
        (32, PortKey { table: subject + 1, protocol: 0, port: [0, 0], unused: 0 }),
        decision,
    )]);
    tables
}

fn name(id: u32) -> Name {
    Name { namespace: "test".into(), name: format!("pod-{id}").into() }
}
