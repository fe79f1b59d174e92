use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::Cluster;
use crate::place::{Host, Place};
use crate::process::{Output, Process};
use crate::traces::BPFFS;
use crate::wait::eventually_within;

/// The user as which proxies run: `nonroot` of the usual base images.
const PROXY_USER: u32 = 65532;
/// Where proxies listen unless they are told otherwise.
const PROXY_PORTS: [u16; 2] = [15001, 15008];
/// How long an agent may take until it has attached its programs and applied the manifests.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How the mesh's processes are started.
#[derive(Clone, Debug, Default)]
pub struct MeshOptions {
    agent_arguments: Vec<OsString>,
    proxy_arguments: Vec<OsString>,
    log: Option<String>,
    without_proxy: bool,
    kubeconfig: Option<PathBuf>,
}

/// The mesh on a cluster: an agent and a proxy for each node. They are killed when this is
/// dropped; what they pinned goes with the cluster.
#[derive(Debug)]
pub struct Mesh {
    nodes: Vec<MeshNode>,
}

/// The mesh's processes on one node, and the directories they share.
#[derive(Debug)]
pub struct MeshNode {
    name: String,
    options: MeshOptions,
    directories: Directories,
    agent_place: Place,
    proxy_place: Place,
    agent: Mutex<Option<Process>>,
    proxy: Mutex<Option<Process>>,
}

#[derive(Clone, Debug)]
struct Directories {
    manifests: PathBuf,
    run: PathBuf,
    pins: PathBuf,
    ca: PathBuf,
    pods_cgroup: PathBuf,
}

impl MeshOptions {
    /// Gives every agent an argument.
    pub fn agent_argument(mut self, argument: impl Into<OsString>) -> Self {
        self.agent_arguments.push(argument.into());
        self
    }

    /// Gives every proxy an argument.
    pub fn proxy_argument(mut self, argument: impl Into<OsString>) -> Self {
        self.proxy_arguments.push(argument.into());
        self
    }

    /// What is logged, as in `WEFT_LOG` (`info` if this is not called).
    pub fn log(mut self, filter: impl Into<String>) -> Self {
        self.log = Some(filter.into());
        self
    }

    /// Agents take their manifests from the API server that this kubeconfig names, in place of the
    /// cluster's directory.
    pub fn kubeconfig(mut self, path: impl Into<PathBuf>) -> Self {
        self.kubeconfig = Some(path.into());
        self
    }

    /// Starts agents alone.
    pub fn without_proxy(mut self) -> Self {
        self.without_proxy = true;
        self
    }

    fn filter(&self) -> &str {
        self.log.as_deref().unwrap_or("info")
    }
}

impl Cluster {
    /// Starts an agent and a proxy on every node, and waits until they are ready.
    pub fn start_mesh(&self, options: &MeshOptions) -> Result<Mesh> {
        self.start_mesh_with(|_| options.clone())
    }

    /// As [`Self::start_mesh`], with options for each node by its name.
    pub fn start_mesh_with(&self, options: impl Fn(&str) -> MeshOptions) -> Result<Mesh> {
        let nodes = self.nodes().map(|node| self.mesh_node(node, &options(node.name())));
        let mesh = Mesh { nodes: nodes.collect::<Result<_>>()? };
        for node in &mesh.nodes {
            node.start_agent()?;
        }
        for node in &mesh.nodes {
            node.await_socket("proxy.sock")?;
            if !node.options.without_proxy {
                node.start_proxy()?;
            }
        }
        for node in &mesh.nodes {
            node.await_ready()?;
        }
        Ok(mesh)
    }

    /// The mesh's part on a node, of which nothing is started yet.
    pub fn mesh_node(&self, node: &Host, options: &MeshOptions) -> Result<MeshNode> {
        mount_bpffs()?;
        let directory = self.directory().join("nodes").join(node.name());
        let directories = Directories {
            manifests: self.manifests(),
            run: directory,
            pins: Path::new(BPFFS).join(self.name()).join(node.name()),
            ca: self.directory().join("ca"),
            pods_cgroup: node.branch().join(self.cgroup_driver().root()),
        };
        fs::create_dir_all(&directories.run)?;
        let place = |part: &str| {
            let name = format!("{part} of {}", node.name());
            let cgroup = node.branch().join(part);
            Place::new(name, node.namespace().clone(), cgroup, node.logs().to_path_buf())
        };
        Ok(MeshNode {
            name: node.name().into(),
            options: options.clone(),
            directories,
            agent_place: place("weft-agent"),
            proxy_place: place("weft-proxy"),
            agent: Mutex::default(),
            proxy: Mutex::default(),
        })
    }
}

impl Mesh {
    /// The mesh's part on a node.
    pub fn node(&self, name: &str) -> Result<&MeshNode> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| format!("the mesh is not on a node {name}"))
    }

    /// Its part on every node.
    pub fn nodes(&self) -> &[MeshNode] {
        &self.nodes
    }

    /// Leaves everything running, for a cluster that is kept.
    pub fn detach(self) {
        for node in self.nodes {
            for process in [node.agent, node.proxy] {
                let process = process.into_inner().unwrap_or_else(PoisonError::into_inner);
                if let Some(process) = process {
                    process.detach();
                }
            }
        }
    }
}

impl MeshNode {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the agent's sockets are.
    pub fn run_directory(&self) -> &Path {
        &self.directories.run
    }

    /// Where the agent pins its programs and maps.
    pub fn pin_directory(&self) -> &Path {
        &self.directories.pins
    }

    /// The cgroup of the proxy.
    pub fn proxy_cgroup(&self) -> &Path {
        self.proxy_place.cgroup()
    }

    /// The agent, while it is started.
    pub fn agent(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The proxy, while it is started.
    pub fn proxy(&self) -> MutexGuard<'_, Option<Process>> {
        self.proxy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the agent, in place of the one before. It is not ready yet.
    pub fn start_agent(&self) -> Result<()> {
        let Directories { manifests, run, pins, ca, pods_cgroup } = &self.directories;
        let source = match &self.options.kubeconfig {
            Some(kubeconfig) => ("--kubeconfig", kubeconfig),
            None => ("--manifests", manifests),
        };
        let run = self
            .agent_place
            .run(binary("weft")?)
            .env("WEFT_LOG", self.options.filter())
            .arg("agent")
            .args(["--node", &self.name])
            .arg(source.0)
            .arg(source.1)
            .arg("--run-dir")
            .arg(run)
            .arg("--pin-dir")
            .arg(pins)
            .arg("--ca-dir")
            .arg(ca)
            .arg("--pods-cgroup")
            .arg(pods_cgroup)
            .arg("--proxy-cgroup")
            .arg(self.proxy_place.cgroup())
            .args(["--proxy-user", &PROXY_USER.to_string()])
            .args(&self.options.agent_arguments);
        let mut agent = self.agent();
        *agent = None;
        *agent = Some(run.spawn()?);
        Ok(())
    }

    /// Kills the agent, as `kill -9` does.
    pub fn kill_agent(&self) {
        *self.agent() = None;
    }

    /// Starts the proxy, in place of the one before.
    pub fn start_proxy(&self) -> Result<()> {
        let run = self
            .proxy_place
            .run(binary("weft-proxy")?)
            .env("WEFT_LOG", self.options.filter())
            .arg("--agent-socket")
            .arg(self.directories.run.join("proxy.sock"))
            .args(&self.options.proxy_arguments)
            .user(PROXY_USER);
        let mut proxy = self.proxy();
        *proxy = None;
        *proxy = Some(run.spawn()?);
        Ok(())
    }

    /// Kills the proxy.
    pub fn kill_proxy(&self) {
        *self.proxy() = None;
    }

    /// Waits until the agent has applied the manifests and, if there is one, the proxy is
    /// connected to it.
    pub fn await_ready(&self) -> Result<()> {
        let with_proxy = self.proxy().is_some();
        let mut last = String::new();
        let waited = eventually_within(READY_WITHIN, "the agent to be ready", || {
            if let Err(error) = self.check_running() {
                return Some(Err(error));
            }
            let status = self.status().ok()?;
            let ready = status["generation"].as_u64().is_some_and(|generation| generation > 0)
                && (!with_proxy || status["proxy_connected"] == true);
            last = status.to_string();
            ready.then_some(Ok(()))
        });
        let logs = || format!("on {}; status {last}\n{}", self.name, self.logs());
        waited.with_context(logs)?.with_context(logs)?;
        if with_proxy {
            for port in PROXY_PORTS {
                self.proxy_place.await_listening(port).with_context(logs)?;
            }
        }
        Ok(())
    }

    /// Runs a `weft` command against this node's agent, on the node.
    pub fn weft<S: AsRef<std::ffi::OsStr>>(
        &self,
        words: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let run = self.agent_place.run(binary("weft")?).args(words);
        run.env("WEFT_RUN_DIR", &self.directories.run).output()
    }

    /// What `weft status` says.
    pub fn status(&self) -> Result<serde_json::Value> {
        let output = self.weft(["status", "-o", "json"])?;
        serde_json::from_str(&output.stdout).with_context(|| output.stderr)
    }

    /// What agent and proxy have logged.
    pub fn logs(&self) -> String {
        let log = |name: &str, process: &Option<Process>| {
            let logs = process.as_ref().map(|process| [process.stdout(), process.stderr()]);
            format!("{name}: {}", logs.map(|logs| logs.concat()).unwrap_or_default())
        };
        format!("{}\n{}", log("agent", &self.agent()), log("proxy", &self.proxy()))
    }

    fn await_socket(&self, name: &str) -> Result<()> {
        let path = self.directories.run.join(name);
        let what = format!("the agent to make {}", path.display());
        let waited = eventually_within(READY_WITHIN, &what, || match self.check_running() {
            Ok(()) => path.exists().then_some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        waited.with_context(|| self.logs())?
    }

    fn check_running(&self) -> Result<()> {
        for (name, process) in [("agent", &mut *self.agent()), ("proxy", &mut *self.proxy())] {
            if let Some(process) = process
                && !process.is_running()
            {
                bail!(
                    "the {name} of {} ended: {}{}",
                    self.name,
                    process.stdout(),
                    process.stderr()
                );
            }
        }
        Ok(())
    }
}

/// A binary of this workspace: in `WEFT_BIN_DIR`, or beside the running program.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("WEFT_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let program = std::env::current_exe()?;
            // Cargo puts test programs in `deps` and examples in `examples`.
            let mut parents = program.ancestors().skip(1);
            let directory = parents.find(|path| !path.ends_with("deps"));
            directory.context("the running program is in no directory")?.to_path_buf()
        }
    };
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} is not there: build it (cargo build -p weft-agent -p weft-proxy -p weft-tests), \
         or name its directory in WEFT_BIN_DIR",
        path.display()
    );
    Ok(path)
}

/// Mounts the file system of pinned BPF objects where it is not.
fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS));
    if mounted {
        return Ok(());
    }
    let status = Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status()?;
    ensure!(status.success(), "cannot mount the BPF file system at {BPFFS}");
    Ok(())
}
