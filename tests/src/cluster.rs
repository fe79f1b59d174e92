use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::address::PodAddresses;
use crate::builder::{Builder, random_uuid};
use crate::cgroup::{self, CgroupDriver};
use crate::manifest::{self, ServiceRecord, ServiceSpec};
use crate::namespace::NetworkNamespace;
use crate::network;
use crate::place::{Host, HostRecord, Place};
use crate::pod::{Pod, PodRecord, PodSpec};
use crate::process::Output;
use crate::state::{self, ClusterSummary, Directory, State};
use crate::traces::Traces;

/// The manifest that the cluster itself writes.
const OWN_MANIFEST: &str = "cluster.yaml";

/// A cluster. Dropping it removes every trace of it, also while a panic unwinds.
#[derive(Debug)]
pub struct Cluster {
    layout: Layout,
    directory: Directory,
    hosts: Vec<Host>,
    state: Mutex<State>,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// Held by the process that made the cluster, which is the one that removes it.
    lock: Option<File>,
}

impl Cluster {
    /// What to make.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Opens a cluster that another process made, by its full name, without owning it.
    pub fn load(name: &str) -> Result<Self> {
        let directory = Directory::of(name);
        let state = directory.read()?;
        Self::new(name.into(), directory, state, None)
    }

    /// The clusters on this machine.
    pub fn list() -> Result<Vec<ClusterSummary>> {
        state::list()
    }

    /// Removes every trace of a cluster, by its full name, whatever is left of it. Returns what
    /// was found.
    pub fn remove(name: &str) -> Result<Traces> {
        let traces = Traces::of(name)?;
        traces.remove().with_context(|| format!("cannot remove all of the cluster {name}"))?;
        Ok(traces)
    }

    /// Removes clusters whose owner has died, unless they were kept. Returns their names.
    pub fn remove_stale() -> Result<Vec<String>> {
        let clusters = state::list()?.into_iter();
        let stale = clusters.filter(|cluster| !cluster.owned && !cluster.kept);
        stale.map(|cluster| Self::remove(&cluster.name).map(|_| cluster.name)).collect()
    }

    pub(crate) fn new(
        name: String,
        directory: Directory,
        state: State,
        lock: Option<File>,
    ) -> Result<Self> {
        let branch = cgroup::mount()?.join(&name);
        let layout = Layout { name, branch, logs: directory.logs(), driver: state.driver };
        let hosts: Vec<_> = state.hosts.iter().map(|record| layout.host(record)).collect();
        let mut pods = BTreeMap::new();
        for record in &state.pods {
            let pod = layout.pod(record.clone(), &hosts)?;
            pods.insert(pod.key(), Arc::new(pod));
        }
        let (state, pods) = (Mutex::new(state), Mutex::new(pods));
        Ok(Self { layout, directory, hosts, state, pods, lock })
    }

    /// Its full name, which everything of it on this machine carries.
    pub fn name(&self) -> &str {
        &self.layout.name
    }

    /// Its directory: state, manifests, logs, the run directories of the mesh.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Where manifests are for the mesh to read.
    pub fn manifests(&self) -> PathBuf {
        self.directory.manifests()
    }

    /// How cgroups are named.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.state().driver
    }

    /// Leaves it up when it is dropped.
    pub fn keep(&self) -> Result<()> {
        self.state().kept = true;
        self.save()
    }

    /// A node, or a host outside.
    pub fn node(&self, name: &str) -> Result<&Host> {
        find_host(&self.hosts, name).with_context(|| format!("{} has no node {name}", self.name()))
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|host| !host.record.outside)
    }

    /// The pod with this key, `namespace/name`.
    pub fn pod(&self, key: &str) -> Result<Arc<Pod>> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(key).cloned().with_context(|| format!("{} has no pod {key}", self.name()))
    }

    /// All pods, by key.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Runs a program in a pod to its end.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(
        &self,
        pod: &str,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        self.pod(pod)?.exec(words)
    }

    /// Addresses of a service, by `namespace/name`.
    pub fn service(&self, key: &str) -> Result<PodAddresses> {
        let state = self.state();
        let found = state.services.iter().find(|service| service.spec.key() == key);
        found
            .map(|service| service.addresses)
            .with_context(|| format!("{} has no service {key}", self.name()))
    }

    /// Adds a pod.
    pub fn add_pod(&self, pod: PodSpec) -> Result<Arc<Pod>> {
        self.add_pods([pod])?.pop().context("a pod was asked for")
    }

    /// Adds pods; the mesh hears of all of them at once, when they are there.
    pub fn add_pods(&self, pods: impl IntoIterator<Item = PodSpec>) -> Result<Vec<Arc<Pod>>> {
        let mut added = Vec::new();
        for spec in pods {
            let record = self.record_pod(spec)?;
            added.push(self.layout.pod(record, &self.hosts)?);
        }
        let own = added.iter().filter(|pod| !pod.record.spec.host_network);
        let namespaces: Vec<_> = own.map(|pod| pod.namespace()).collect();
        network::add_namespaces(&namespaces)?;
        let mut shared = Vec::new();
        for mut pod in added {
            self.create_pod(&mut pod)?;
            let pod = Arc::new(pod);
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            pods.insert(pod.key(), pod.clone());
            shared.push(pod);
        }
        self.save()?;
        Ok(shared)
    }

    /// Kills a pod's processes and removes it. Its addresses are free for another.
    pub fn remove_pod(&self, key: &str) -> Result<()> {
        let pod = self.pod(key)?;
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        cgroup::remove(pod.pod_cgroup())?;
        if !pod.record.spec.host_network {
            let node = self.node(pod.node())?;
            network::part_pod(node.namespace(), &network::link_name(pod.addresses()))?;
            network::remove_namespaces(&[pod.namespace().clone()])?;
        }
        self.state().pods.retain(|record| record.spec.key() != key);
        self.save()
    }

    /// Tells the mesh of pods that were added [`PodSpec::unlisted`], by their keys.
    pub fn list_pods(&self, keys: impl IntoIterator<Item = String>) -> Result<()> {
        let keys: BTreeSet<_> = keys.into_iter().collect();
        for record in &mut self.state().pods {
            if keys.contains(&record.spec.key()) {
                record.spec.unlisted = false;
            }
        }
        self.save()
    }

    /// Changes the labels of a pod, in the manifests.
    pub fn relabel_pod(&self, key: &str, labels: &[(&str, &str)]) -> Result<()> {
        for record in &mut self.state().pods {
            if record.spec.key() == key {
                let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
                record.spec.labels = labels.collect();
            }
        }
        self.save()
    }

    /// Adds services.
    pub fn add_services(&self, services: impl IntoIterator<Item = ServiceSpec>) -> Result<()> {
        for spec in services {
            let mut state = self.state();
            let taken = |number: u16| {
                let addresses = PodAddresses::of_service(number);
                state.services.iter().any(|service| service.addresses == addresses)
            };
            let number = (1..=u16::MAX).find(|number| !taken(*number));
            let addresses = PodAddresses::of_service(number.context("no service address left")?);
            state.services.push(ServiceRecord { spec, addresses });
        }
        self.save()
    }

    /// Writes a manifest for the mesh: `name` becomes a file, as a whole.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        ensure!(name != OWN_MANIFEST, "{OWN_MANIFEST} is the cluster's own manifest");
        state::replace(&self.manifests().join(name), yaml.as_bytes())
    }

    /// Takes a manifest away.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        let path = self.manifests().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Makes the nodes and their network.
    pub(crate) fn create_hosts(&self) -> Result<()> {
        let root = self.cgroup_driver().root();
        for host in &self.hosts {
            for part in [root, "system", "weft-agent", "weft-proxy"] {
                cgroup::create(&host.branch.join(part))?;
            }
        }
        let fabric = self.layout.namespace("fabric");
        let mut namespaces = vec![&fabric];
        namespaces.extend(self.hosts.iter().map(|host| host.namespace()));
        network::add_namespaces(&namespaces)?;
        let hosts: Vec<_> =
            self.hosts.iter().map(|host| (&host.record, host.namespace())).collect();
        network::join_hosts(&fabric, &hosts, self.state().mtu)?;
        self.save()
    }

    fn record_pod(&self, spec: PodSpec) -> Result<PodRecord> {
        let node = self.node(&spec.node)?;
        ensure!(!node.record.outside, "{} is no node: it cannot have pods", spec.node);
        let mut state = self.state();
        let key = spec.key();
        ensure!(state.pods.iter().all(|pod| pod.spec.key() != key), "pod {key} is there already");
        let addresses = if spec.host_network {
            let node = node.addresses();
            PodAddresses { ipv4: node.ipv4, ipv6: node.ipv6 }
        } else {
            let taken: Vec<_> = state.pods.iter().map(|pod| pod.addresses).collect();
            let numbers = match spec.host_number {
                Some(number) => number..=number,
                None => 2..=254,
            };
            let mut free = numbers.map(|number| node.addresses().pod(number));
            let free = free.find(|addresses| !taken.contains(addresses));
            free.with_context(|| format!("{} has no address left for pod {key}", spec.node))?
        };
        let uid = match &spec.uid {
            Some(uid) => uid.clone(),
            None => random_uuid()?,
        };
        let id = || Ok::<_, anyhow::Error>(random_uuid()?.replace('-', "").repeat(2));
        let record = PodRecord { spec, uid, addresses, sandbox: id()?, container: id()? };
        state.pods.push(record.clone());
        Ok(record)
    }

    fn create_pod(&self, pod: &mut Pod) -> Result<()> {
        let spec = &pod.record.spec;
        let node = self.node(&spec.node)?;
        let sandbox = pod.pod_cgroup.join(self.cgroup_driver().container(&pod.record.sandbox));
        cgroup::create(&sandbox)?;
        cgroup::create(pod.place.cgroup())?;
        if !spec.host_network {
            let addresses = pod.record.addresses;
            network::join_pod(
                pod.namespace(),
                addresses,
                node.namespace(),
                node.addresses().gateway(),
                &network::link_name(addresses),
                self.state().mtu,
            )?;
        }
        let place =
            Place::new(pod.key(), pod.namespace().clone(), sandbox, pod.logs().to_path_buf());
        pod.pause = Some(place.contained().spawn(["sleep", "infinity"])?);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what there is, for others to find and for the mesh to read.
    fn save(&self) -> Result<()> {
        let state = self.state();
        self.directory.write(&state)?;
        let State { hosts, namespaces, pods, services, .. } = &*state;
        let manifest = manifest::render(hosts, namespaces, pods, services);
        state::replace(&self.manifests().join(OWN_MANIFEST), manifest.as_bytes())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.lock.is_none() || self.state().kept {
            return;
        }
        if let Err(error) = Self::remove(self.name()) {
            eprintln!("{error:#}");
        }
    }
}

/// Where everything of a cluster is.
#[derive(Clone, Debug)]
struct Layout {
    name: String,
    /// Its branch of the cgroups.
    branch: PathBuf,
    logs: PathBuf,
    driver: CgroupDriver,
}

impl Layout {
    fn namespace(&self, part: &str) -> NetworkNamespace {
        NetworkNamespace::new(format!("{}.{part}", self.name))
    }

    fn host(&self, record: &HostRecord) -> Host {
        let name = &record.name;
        let branch = self.branch.join(name);
        let namespace = self.namespace(&format!("node.{name}"));
        let place = Place::new(name, namespace, branch.join("system"), self.logs.join(name));
        Host { record: record.clone(), branch, place }
    }

    fn pod(&self, record: PodRecord, hosts: &[Host]) -> Result<Pod> {
        let spec = &record.spec;
        let node = find_host(hosts, &spec.node).with_context(|| {
            format!("pod {} is on node {}, which is none", spec.key(), spec.node)
        })?;
        let root = node.branch.join(self.driver.root());
        let pod_cgroup = root.join(self.driver.pod(spec.qos, &record.uid));
        let cgroup = pod_cgroup.join(self.driver.container(&record.container));
        let namespace = if spec.host_network {
            node.namespace().clone()
        } else {
            self.namespace(&format!("pod.{}.{}", spec.namespace, spec.name))
        };
        let logs = self.logs.join(format!("{}.{}", spec.namespace, spec.name));
        let place = Place::new(spec.key(), namespace, cgroup, logs).contained();
        Ok(Pod { place, pod_cgroup, pause: None, record })
    }
}

fn find_host<'a>(hosts: &'a [Host], name: &str) -> Option<&'a Host> {
    hosts.iter().find(|host| host.name() == name)
}
