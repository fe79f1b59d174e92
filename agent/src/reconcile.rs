//! The one task that owns the mesh, the compiler and the kernel. Whatever changes comes here, is
//! compiled, applied, and published; what cannot be applied leaves the last good policy in force.

mod bindings;
mod host_network;
mod interfaces;
mod network_config;
mod own_node;
mod own_pod;
mod pods;
mod proxy;
mod status;
mod takeover;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use weft_common::{Counter, PodId};
use weft_model::compile::{Compiler, Tables};
use weft_model::mesh::Mesh;

use crate::agent::Ready;
use crate::api::{Ask, ProxyPorts, ProxyState};
use crate::ca::Issued;
use crate::flows::FlowRing;
use crate::identity::SpiffeId;
use crate::kernel::{
    Applied, ApplyError, BpfLog, CgroupWatch, CutConnection, Kernel, KernelError, NodeAddresses,
    Options, Settings, release_memory,
};
use crate::snapshot::{Snapshot, Snapshots};
use crate::source::View;

use bindings::Bindings;
use interfaces::{Found, Interfaces};
use own_node::OwnNode;

pub use network_config::NetworkConfig;
pub use own_pod::announce_own_pod;

/// Between looks at the kernel's counters, and at what failed and may work now.
const TICK: Duration = Duration::from_secs(1);
/// Between tries to apply what could not be applied.
const RETRY: Duration = Duration::from_secs(5);

/// From a pod's cgroup to its first process, as a rule.
const PREPARE: Duration = Duration::from_secs(10);
/// From the last change until memory is given back.
const QUIET: Duration = Duration::from_secs(5);
/// After a change of policy, how long to look for connections that were being admitted meanwhile.
const LATE: Duration = Duration::from_secs(10);

/// Whom the reconciler tells what is in force.
pub struct Outputs {
    /// Flows, explanations and status.
    pub snapshots: Arc<Snapshots>,
    /// Where lost events are counted.
    pub flows: Arc<FlowRing>,
    /// The node's proxy.
    pub proxy: watch::Sender<Arc<ProxyState>>,
    /// Which identities have a pod on this node.
    pub wanted: watch::Sender<BTreeSet<SpiffeId>>,
    /// How many proxies are connected.
    pub connected: Arc<AtomicUsize>,
    /// Whoever waits for the first policy.
    pub ready: Ready,
    /// The container runtime, where pods wait for the first policy, too.
    pub network: Option<NetworkConfig>,
}

/// What is wrong now, by what it came from.
#[derive(Debug, Default)]
struct Problems {
    apply: Option<String>,
    cut: Option<String>,
    cgroups: Option<String>,
    /// The programs are not at the pods' root.
    attach: Option<String>,
    bindings: Option<String>,
    addresses: Option<String>,
    network: Option<String>,
    interfaces: BTreeMap<PodId, String>,
}

/// See the module.
pub struct Reconciler {
    node: Arc<str>,
    settings: Settings,
    ports: ProxyPorts,
    kernel: Kernel,
    compiler: Compiler,
    bindings: Bindings,
    /// The agent's own cgroup, and the root of the pods'.
    own_cgroup: Option<PathBuf>,
    pods_cgroup: PathBuf,
    interfaces: Interfaces,
    found: mpsc::UnboundedReceiver<Found>,
    outputs: Outputs,
    view: View,
    own_node: OwnNode,
    /// What is in the kernel.
    tables: Option<Arc<Tables>>,
    problems: Problems,
    issued: Issued,
    retry: Option<Instant>,
    /// Pods' namespaces are entered for cutting connections until then.
    prepare_until: Instant,
    /// Connections that the policy forbids may still turn up until then.
    late_until: Instant,
    /// When memory is to be given back that the last change needed.
    release: Option<Instant>,
}

impl Reconciler {
    /// With the kernel that was opened with `options`.
    pub fn new(
        node: Arc<str>,
        options: &Options,
        ports: ProxyPorts,
        kernel: Kernel,
        outputs: Outputs,
    ) -> Self {
        let own_cgroup = own_pod::own_cgroup(&options.pods_cgroup);
        let own = own_cgroup
            .clone()
            .into_iter()
            .chain(options.proxy_cgroup.path().map(Path::to_owned))
            .collect();
        let compiler = Compiler::starting_at(kernel.highest_id().saturating_add(1));
        let (interfaces, found) = Interfaces::new();
        Self {
            node,
            settings: options.settings.clone(),
            ports,
            kernel,
            compiler,
            bindings: Bindings::new(own),
            own_cgroup,
            pods_cgroup: options.pods_cgroup.clone(),
            interfaces,
            found,
            outputs,
            view: View::default(),
            own_node: OwnNode::default(),
            tables: None,
            problems: Problems::default(),
            issued: Issued::default(),
            retry: None,
            prepare_until: Instant::now(),
            late_until: Instant::now(),
            release: None,
        }
    }

    /// The programs' own log lines, if they were asked for.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn bpf_log(&mut self) -> Result<Option<BpfLog>, KernelError> {
        self.kernel.bpf_log()
    }

    /// Follows everything that changes, until the source has gone.
    pub async fn run(
        &mut self,
        mut view: watch::Receiver<View>,
        mut cgroups: CgroupWatch,
        mut issued: watch::Receiver<Issued>,
        mut asked: mpsc::Receiver<Ask>,
    ) {
        // What the kernel has of an earlier agent is judged with all cgroups known.
        while let Some(event) = cgroups.try_next() {
            self.take_cgroup(event);
        }
        self.bind_own();
        self.take_view(view.borrow_and_update().clone());
        let mut addresses = match NodeAddresses::follow() {
            Ok(mut addresses) => {
                self.take_addresses(&mut addresses);
                Some(addresses)
            }
            Err(error) => {
                self.addresses_failed(&error);
                None
            }
        };
        self.reconcile();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let look = self.interfaces.next().map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                Some(event) = cgroups.next() => self.take_cgroups(event, &mut cgroups),
                changed = view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_view(view.borrow_and_update().clone());
                    self.reconcile();
                }
                changed = issued.changed() => {
                    if changed.is_ok() {
                        self.issued = issued.borrow_and_update().clone();
                        self.tell_proxy(|state| state.set_certificates(&self.issued));
                    }
                }
                changed = changed(&mut addresses) => match (changed, &mut addresses) {
                    (Ok(()), Some(following)) => {
                        if self.take_addresses(following) {
                            self.reconcile();
                        }
                    }
                    (changed, _) => {
                        addresses = None;
                        if let Err(error) = changed {
                            self.addresses_failed(&error);
                        }
                    }
                },
                Some(ask) = asked.recv() => self.answer(ask),
                Some(found) = self.found.recv() => self.take_interfaces(found),
                () = sleep_until(look), if look.is_some() => self.interfaces.look(),
                _ = tick.tick() => {
                    if self.problems.addresses.is_some() {
                        if addresses.is_none() {
                            addresses = NodeAddresses::follow().ok();
                        }
                        if let Some(following) = &mut addresses
                            && self.take_addresses(following)
                        {
                            self.reconcile();
                        }
                    }
                    self.tick();
                }
            }
        }
    }

    fn take_view(&mut self, view: View) {
        let first = view.complete && !self.view.complete;
        self.view = view;
        if first {
            self.adopt_pods();
        }
    }

    /// Pods that an earlier agent has bound keep their ids: their connections name them.
    fn adopt_pods(&mut self) {
        let adopted = self.bindings.pods(&self.view.mesh, &self.node, self.kernel.bound_cgroups());
        for (pod, id) in adopted {
            self.compiler.adopt_pod(pod.name.clone(), pod.uid.clone(), id);
        }
    }

    /// Reads the addresses of the node's interfaces. Returns whether they have changed.
    fn take_addresses(&mut self, addresses: &mut NodeAddresses) -> bool {
        match addresses.read() {
            Ok(read) => {
                self.problems.addresses = None;
                self.own_node.set(read)
            }
            Err(error) => {
                self.addresses_failed(&error);
                false
            }
        }
    }

    fn addresses_failed(&mut self, error: &dyn std::error::Error) {
        let problem = format!(
            "{error}: what this node sends its pods from addresses that its Node does not name is \
             judged like a stranger's; it is tried again every second"
        );
        if self.problems.addresses.as_ref() != Some(&problem) {
            tracing::error!("{problem}");
        }
        self.problems.addresses = Some(problem);
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Status(answer) => reply(answer, self.status()),
            Ask::ProxyConnected { process, answer } => {
                reply(answer, self.attach_proxy(process));
            }
        }
    }

    fn tick(&mut self) {
        match self.kernel.counters() {
            Ok(counters) => self.outputs.flows.set_lost(counters.get(Counter::EventsLost)),
            Err(error) => tracing::warn!(%error, "counters"),
        }
        self.publish_network();
        self.find_host_network();
        if self.problems.attach.is_some() {
            self.follow_pods_cgroup();
        }
        if Instant::now() < self.prepare_until
            && let Err(error) = self.kernel.prepare_to_cut()
        {
            tracing::warn!(%error, "cutting connections may take longer");
        }
        if self.problems.cut.is_some() {
            self.cut();
        } else if Instant::now() < self.late_until {
            let cut = self.kernel.cut_forbidden();
            self.take_cut(cut);
        }
        if self.release.is_some_and(|release| release <= Instant::now()) {
            self.release = None;
            release_memory();
        }
        if self.retry.is_some_and(|retry| retry <= Instant::now()) {
            self.reconcile();
        } else if self.problems.bindings.is_some() {
            self.bind();
        }
    }

    /// Compiles the mesh and brings it into the kernel. While the source does not know all of it,
    /// what is in force stays.
    fn reconcile(&mut self) {
        if !self.view.complete {
            return;
        }
        let started = Instant::now();
        let mesh = self.own_node.added_to(&self.view.mesh, &self.node);
        if self.problems.apply.is_none()
            && self.outputs.snapshots.current().is_some_and(|current| current.mesh == mesh)
        {
            // Only what is to be said about the manifests has changed.
            return;
        }
        let tables = Arc::new(self.compiler.compile(&mesh, &self.node));
        let compiled = started.elapsed();
        self.outputs.snapshots.announce(&mesh, &tables);

        let settings = node_settings(&self.settings, &self.view.mesh, &self.node);
        let same_settings = settings == self.settings;
        if same_settings && self.problems.apply.is_none() && self.tables.as_ref() == Some(&tables) {
            let generation = self.kernel.config().generation;
            self.publish(mesh, tables, generation);
            return;
        }
        let configured = if same_settings {
            Ok(())
        } else {
            self.kernel.configure(settings.clone()).map(|()| self.settings = settings)
        };
        let applied = match configured.and_then(|()| self.apply(&tables)) {
            Ok(applied) => applied,
            Err(error) => {
                tracing::error!(%error, "the policy cannot be applied; the last good one stays");
                self.compiler.not_applied();
                self.problems.apply = Some(error.to_string());
                self.retry = Some(Instant::now() + RETRY);
                return;
            }
        };
        self.tables = Some(tables.clone());
        self.problems.apply = None;
        self.retry = None;
        self.bind();
        self.cut();
        tracing::info!(
            generation = applied.generation,
            documents = self.view.documents,
            pods = tables.pods.len(),
            written = applied.written,
            deleted = applied.deleted,
            compiled_us = compiled.as_micros(),
            total_us = started.elapsed().as_micros(),
            "applied",
        );
        self.publish(mesh, tables, applied.generation);
    }

    fn apply(&mut self, tables: &Tables) -> Result<Applied, ApplyError> {
        if self.tables.is_none()
            && let Some(bridged) = takeover::bridge(&self.kernel.installed(), tables)
        {
            // Where there is no room for both, the change is not seamless.
            if let Err(error) = self.kernel.apply(&bridged) {
                tracing::warn!(%error, "the earlier agent's policy is replaced at one go");
            }
        }
        self.kernel.apply(tables)
    }

    fn publish(&mut self, mesh: Arc<Mesh>, tables: Arc<Tables>, generation: u32) {
        self.release = Some(Instant::now() + QUIET);
        let wanted = identities(&mesh, &self.node);
        self.outputs.wanted.send_if_modified(|known| {
            let changed = *known != wanted;
            *known = wanted;
            changed
        });
        let (node, ports) = (self.node.clone(), self.ports);
        // The proxy listens where the Node says.
        let nodes = &self.view.mesh.nodes;
        self.tell_proxy(|state| state.set_mesh(&mesh, nodes, &node, ports));
        self.outputs.snapshots.publish(Snapshot {
            generation,
            applied: SystemTime::now(),
            mesh,
            tables,
        });
        self.outputs.ready.set(generation);
        self.publish_network();
    }

    /// Lets the container runtime have the network's configuration, once a policy is in force.
    fn publish_network(&mut self) {
        let Some(network) = self.outputs.network.as_ref().filter(|_| self.tables.is_some()) else {
            return;
        };
        self.problems.network = match network.publish() {
            Ok(changed) => {
                if changed {
                    tracing::info!("the container runtime has the network's configuration");
                }
                None
            }
            Err(error) => {
                let problem = format!(
                    "--cni-config: {error}: pods may not start on this node; it is tried again \
                     every second"
                );
                if self.problems.network.as_ref() != Some(&problem) {
                    tracing::error!("{problem}");
                }
                Some(problem)
            }
        };
    }

    fn tell_proxy(&self, change: impl FnOnce(&mut ProxyState)) {
        self.outputs.proxy.send_modify(|state| change(Arc::make_mut(state)));
    }

    /// Cuts connections that the policy in the kernel forbids.
    fn cut(&mut self) {
        self.late_until = Instant::now() + LATE;
        let cut = self.kernel.cut_forbidden();
        self.take_cut(cut);
    }

    fn take_cut(&mut self, cut: Result<Vec<CutConnection>, KernelError>) {
        self.problems.cut = match cut {
            Ok(cut) => {
                if !cut.is_empty() {
                    tracing::info!(connections = cut.len(), "cut: no longer allowed");
                }
                None
            }
            Err(error) => {
                tracing::error!(%error, "forbidden connections");
                Some(format!("{error}; no more bytes of them pass"))
            }
        };
    }
}

/// The settings for a node of the mesh: its proxy listens at its addresses.
fn node_settings(settings: &Settings, mesh: &Mesh, node: &str) -> Settings {
    let mut settings = settings.clone();
    // The manifests may say another than the agent was started with.
    settings.same_node_mtls = mesh.settings.same_node_mtls;
    let addresses = mesh
        .nodes
        .get(node)
        .map(|node| node.addresses.iter().map(IpAddr::to_canonical).collect::<Vec<_>>())
        .unwrap_or_default();
    settings.node_v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    });
    settings.node_v6 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some(*v6),
    });
    settings
}

/// The identities that have a pod of the mesh on a node.
fn identities(mesh: &Mesh, node: &str) -> BTreeSet<SpiffeId> {
    mesh.pods
        .values()
        .filter(|pod| *pod.node == *node && mesh.is_enrolled(pod))
        .map(|pod| {
            SpiffeId::new(&mesh.settings.trust_domain, &pod.name.namespace, &pod.service_account)
        })
        .collect()
}

/// Waits until the node's addresses may have changed; for ever if they are not followed.
async fn changed(addresses: &mut Option<NodeAddresses>) -> std::io::Result<()> {
    match addresses {
        Some(addresses) => addresses.changed().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(when: Option<tokio::time::Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Whoever asked may have gone.
fn reply<T>(answer: oneshot::Sender<T>, value: T) {
    let _gone = answer.send(value);
}
