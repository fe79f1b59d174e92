use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::control_plane::{ADMINISTRATORS, ControlPlane, PORT};
use super::node::{KubeletFiles, KubernetesNode, Setting};
use super::options::KubernetesOptions;
use super::pki::{Pki, User};
use super::tools::kubernetes_program;
use super::{access, dns, images};
use crate::cgroup::CgroupDriver;
use crate::cluster::Cluster;
use crate::place::Host;
use crate::process::Run;
use crate::state;

/// The host that the control plane is on.
const CONTROL_PLANE: &str = "control-plane";
/// How long the nodes may take until they are Ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long kubectl and Helm may take; they have time limits of their own for what they await.
const COMMAND_WITHIN: Duration = Duration::from_secs(300);

/// A Kubernetes; see [`crate::kubernetes`]. Dropping it removes every trace of it, also while a
/// panic unwinds.
#[derive(Debug)]
pub struct KubernetesCluster {
    nodes: Vec<KubernetesNode>,
    control_plane: ControlPlane,
    /// Its hosts. Last, for it removes what the others run in.
    base: Cluster,
}

impl KubernetesCluster {
    /// Brings a cluster up, and waits until its nodes are Ready.
    ///
    /// # Errors
    /// Kubernetes is not built yet (`cargo xtask kubernetes`), or something does not come up:
    /// what it logged is in the error.
    pub fn start(options: &KubernetesOptions) -> Result<Self> {
        let mut builder = Cluster::builder().cgroup_driver(CgroupDriver::Cgroupfs);
        if let Some(name) = &options.name {
            builder = builder.name(name);
        }
        for node in options.nodes.iter().map(String::as_str).chain([CONTROL_PLANE]) {
            builder = builder.node(node);
        }
        for host in &options.outside {
            builder = builder.outside(host);
        }
        let base = builder.build()?;
        let data = state::data_directory(base.name());
        fs::create_dir_all(&data)?;
        let cluster = Self::over(base, options.nodes.iter().map(String::as_str))?;
        cluster.bring_up(options, &data)?;
        Ok(cluster)
    }

    /// Opens a cluster that another process made and kept, by its full name, without owning it.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn load(name: &str) -> Result<Self> {
        let base = Cluster::load(name)?;
        let nodes: Vec<_> = base.nodes().map(|node| node.name().to_owned()).collect();
        ensure!(nodes.iter().any(|node| node == CONTROL_PLANE), "{name} is not a Kubernetes");
        let nodes = nodes.iter().map(String::as_str).filter(|node| *node != CONTROL_PLANE);
        Self::over(base, nodes)
    }

    /// Its full name, which everything of it on this machine carries.
    pub fn name(&self) -> &str {
        self.base.name()
    }

    /// Its directory: certificates, kubeconfigs, logs.
    pub fn directory(&self) -> &Path {
        self.base.directory()
    }

    /// A kubeconfig of an administrator, to be used on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki("admin.kubeconfig")
    }

    /// Its nodes, without the control plane's host.
    pub fn nodes(&self) -> &[KubernetesNode] {
        &self.nodes
    }

    /// The node of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&KubernetesNode> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("{} has no node {name}", self.name()))
    }

    /// A host beyond the cluster ([`KubernetesOptions::outside`]), or the control plane's.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.base.node(name)
    }

    /// The API server's address on the network between the nodes, with its port. Pods with the
    /// host's network reach it without help of kube-proxy or of a mesh.
    pub fn api_server(&self) -> (std::net::Ipv4Addr, u16) {
        (self.control_plane.host().addresses().ipv4, PORT)
    }

    /// Runs kubectl as administrator. Returns what it wrote.
    ///
    /// # Errors
    /// It fails: what it said is the error.
    pub fn kubectl<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        self.kubectl_command(words)?.output()?.success()
    }

    /// kubectl, about to run as administrator: for what runs on (`port-forward`), or may fail.
    ///
    /// # Errors
    /// Kubernetes is not built.
    pub fn kubectl_command<S: AsRef<OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Run<'_>> {
        let run = self.control_plane.host().run(kubernetes_program("kubectl")?).args(words);
        Ok(self.at_home(run))
    }

    /// Runs Helm as administrator. Returns what it wrote.
    ///
    /// # Errors
    /// It fails: what it said is the error.
    pub fn helm<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let run = self.control_plane.host().run(kubernetes_program("helm")?).args(words);
        self.at_home(run).output()?.success()
    }

    /// Applies manifests, as `kubectl apply` does.
    ///
    /// # Errors
    /// The API server refuses one of them.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("apply-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = self.directory().join(name);
        fs::write(&path, yaml)?;
        let manifests = File::open(&path)?;
        fs::remove_file(&path)?;
        self.kubectl_command(["apply", "-f", "-"])?.stdin(manifests).output()?.success()
    }

    /// Makes a namespace, and waits for its service account, without which it takes no pods.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn create_namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": { "name": name, "labels": labels },
        });
        self.apply(&namespace.to_string())?;
        self.await_account(name)
    }

    /// Waits for the account that pods of a namespace have by default.
    ///
    /// # Errors
    /// The controller manager does not make it.
    pub fn await_account(&self, namespace: &str) -> Result<()> {
        let account = "serviceaccount/default";
        let words = ["wait", "--for=create", account, "--namespace", namespace, "--timeout=60s"];
        self.kubectl(words).map(drop)
    }

    /// An object as the API server has it, such as `get("pod", "shop", "web")`.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(["get", kind, name, "--namespace", namespace, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until all pods of a namespace are Ready.
    ///
    /// # Errors
    /// They are not in time: what the API server knows of them is in the error.
    pub fn await_pods(&self, namespace: &str, limit: Duration) -> Result<()> {
        let wait = self.kubectl([
            "wait",
            "pod",
            "--all",
            "--for=condition=Ready",
            "--namespace",
            namespace,
            &format!("--timeout={}s", limit.as_secs()),
        ]);
        wait.map(drop).with_context(|| {
            let events = self.kubectl(["get", "pods,events", "--namespace", namespace]);
            events.unwrap_or_else(|error| format!("{error:#}"))
        })
    }

    /// Brings the images of an archive to every node.
    ///
    /// # Errors
    /// The archive cannot be read, or containerd does not take it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        self.on_all_nodes(|node| node.import_image(archive))
    }

    /// Stops the API server: the rest lives on without it.
    pub fn stop_api_server(&self) {
        self.control_plane.stop_api_server(true);
    }

    /// Kills the API server, as `kill -9` does.
    pub fn kill_api_server(&self) {
        self.control_plane.stop_api_server(false);
    }

    /// Starts the API server again, and waits until it is ready.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_api_server(&self) -> Result<()> {
        self.control_plane.start_api_server()
    }

    /// Leaves it up. [`Cluster::remove`] removes it by its name.
    ///
    /// # Errors
    /// That cannot be written down.
    pub fn keep(self) -> Result<()> {
        self.base.keep()?;
        self.control_plane.detach();
        self.nodes.into_iter().for_each(KubernetesNode::detach);
        Ok(())
    }

    fn over<'a>(base: Cluster, nodes: impl Iterator<Item = &'a str>) -> Result<Self> {
        let data = state::data_directory(base.name());
        let pki = base.directory().join("pki");
        let control_plane = ControlPlane::new(base.node(CONTROL_PLANE)?, &pki, &data);
        let nodes = nodes.map(|name| Ok(KubernetesNode::new(base.node(name)?, &data)));
        let nodes = nodes.collect::<Result<_>>()?;
        Ok(Self { nodes, control_plane, base })
    }

    fn bring_up(&self, options: &KubernetesOptions, data: &Path) -> Result<()> {
        let outer = access::join(self.name(), self.control_plane.host())?;
        let pki = Pki::create(&self.directory().join("pki"))?;
        self.control_plane.prepare(&pki, outer)?;
        let server = format!("https://{outer}:{PORT}");
        let administrator = User { name: "kubernetes-admin", group: Some(ADMINISTRATORS) };
        pki.kubeconfig("admin", &server, &administrator)?;

        let archive = data.join("images.tar");
        images::write(&archive, options.dns)?;
        let proxy = User { name: "system:kube-proxy", group: None };
        let proxy = pki.kubeconfig("kube-proxy", &self.control_plane.address(), &proxy)?;
        let credentials = self.kubelet_credentials(&pki)?;
        thread::scope(|scope| {
            let control_plane = scope.spawn(|| {
                self.control_plane.start()?;
                self.register_nodes()
            });
            let authority = pki.authority().certificate;
            let nodes = self.on_all_nodes(|node| {
                let [kubeconfig, certificate, key] =
                    credentials.get(node.name()).context("a node without credentials")?;
                let kubelet = KubeletFiles { kubeconfig, authority: &authority, certificate, key };
                node.start(&Setting {
                    cni: options.cni,
                    driver: if options.systemd.iter().any(|name| name == node.name()) {
                        CgroupDriver::Systemd
                    } else {
                        CgroupDriver::Cgroupfs
                    },
                    kubelet,
                    kube_proxy: options.kube_proxy.then_some(proxy.as_path()),
                    images: &archive,
                })
            });
            join(control_plane)?;
            nodes
        })?;
        fs::remove_file(&archive)?;
        self.await_nodes()?;
        if options.dns {
            dns::install(self)?;
        }
        Ok(())
    }

    /// Kubeconfig, certificate and key of each node's kubelet.
    fn kubelet_credentials(&self, pki: &Pki) -> Result<BTreeMap<String, [PathBuf; 3]>> {
        let mut all = BTreeMap::new();
        for node in &self.nodes {
            let name = node.name();
            let user = User { name: &format!("system:node:{name}"), group: Some("system:nodes") };
            let kubeconfig = pki.kubeconfig(name, &self.control_plane.address(), &user)?;
            let addresses = node.host().addresses();
            let known_as =
                [name.to_owned(), addresses.ipv4.to_string(), addresses.ipv6.to_string()];
            let server = pki.server(&format!("{name}-kubelet"), &known_as)?;
            all.insert(name.to_owned(), [kubeconfig, server.certificate, server.key]);
        }
        Ok(all)
    }

    /// Nodes' ranges of addresses are given when they are made, and their routes are there: so
    /// the nodes are made here, and a kubelet finds its own. Besides, the API server is allowed
    /// to do what `kubectl exec`, `logs` and `port-forward` ask of a kubelet, and kube-proxy
    /// what it needs (the bootstrap policy has the latter's role, bound to this user).
    fn register_nodes(&self) -> Result<()> {
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let cidrs = node.host().addresses().pod_cidrs();
                json!({
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": node.name(),
                        "labels": {
                            "kubernetes.io/hostname": node.name(),
                            "kubernetes.io/os": "linux",
                        },
                    },
                    "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
                })
            })
            .collect();
        self.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": nodes }).to_string())?;
        Ok(())
    }

    fn await_nodes(&self) -> Result<()> {
        let timeout = format!("--timeout={}s", READY_WITHIN.as_secs());
        let wait = self.kubectl(["wait", "node", "--all", "--for=condition=Ready", &timeout]);
        wait.map(drop).with_context(|| {
            let logs = self.nodes.iter().map(KubernetesNode::logs);
            logs.collect::<Vec<_>>().join("\n")
        })
    }

    fn on_all_nodes(&self, work: impl Fn(&KubernetesNode) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> =
                self.nodes.iter().map(|node| scope.spawn(move || work(node))).collect();
            running.into_iter().try_for_each(join)
        })
    }

    /// kubectl and Helm keep caches below `HOME`.
    fn at_home<'a>(&self, run: Run<'a>) -> Run<'a> {
        run.env("HOME", self.directory()).env("KUBECONFIG", self.kubeconfig()).limit(COMMAND_WITHIN)
    }

    fn pki(&self, file: &str) -> PathBuf {
        self.directory().join("pki").join(file)
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
