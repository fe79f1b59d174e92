//! The node agent: its parts, put together.

mod notify;
mod ready;

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use weft_model::mesh;
use weft_proto::v1::observer_server::ObserverServer;
use weft_proto::v1::proxy_config_server::ProxyConfigServer;

use crate::api::{Allowed, Ask, Listener, ObserverService, ProxyPorts, ProxyService, ProxyState};
use crate::ca::channel::{CaAddress, Services, endpoints};
use crate::ca::client::CaClient;
use crate::ca::{Authority, Source, WorkloadCertificates};
use crate::conditions;
use crate::flows::FlowRing;
use crate::kernel::{self, CgroupWatch, FlowEvents, Kernel, ProxyCgroup};
use crate::reconcile::{NetworkConfig, Outputs, Reconciler, announce_own_pod};
use crate::snapshot::Snapshots;
use crate::source::{Cluster, Directory};

pub use notify::notify;
pub use ready::{Ready, ready_file};

/// Where the agent has its sockets, unless told otherwise.
pub const RUN_DIR: &str = "/run/weft";
/// Where maps and links are pinned, unless told otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/weft";
/// Where the trust root is, unless told otherwise.
pub const CA_DIR: &str = "/var/lib/weft/ca";

/// The socket for tools.
pub fn observer_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}

/// The socket for the node's proxy.
pub fn proxy_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("proxy.sock")
}

/// Where the container runtime finds the network's configuration.
pub fn network_directory(run_dir: &Path) -> PathBuf {
    run_dir.join("cni")
}

/// Everything that the agent is told.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the node.
    pub node: Arc<str>,
    /// Where manifests come from.
    pub manifests: Manifests,
    /// Where the sockets and the marker `ready` are.
    pub run_dir: PathBuf,
    /// Where CNI plugins' installers write their configuration, if the container runtime is to have
    /// it from the agent.
    pub cni_config: Option<PathBuf>,
    /// The trust root's directory, where there is no `ca`.
    pub ca_dir: PathBuf,
    /// The cluster's certificate authority.
    pub ca: Option<CaAddress>,
    /// How long workloads' certificates live.
    pub certificate_life: Duration,
    /// The user of the node's proxy.
    pub proxy_user: Option<u32>,
    /// How many flow events are remembered.
    pub flows: usize,
    /// What the mesh is read with.
    pub mesh: mesh::Settings,
    /// What the kernel is opened with.
    pub kernel: kernel::Options,
}

/// Where manifests come from.
#[derive(Clone, Debug)]
pub enum Manifests {
    /// A directory.
    Directory(PathBuf),
    /// The API server that a kubeconfig names, or the one of the cluster whose pod this is.
    Cluster {
        /// The kubeconfig.
        kubeconfig: Option<PathBuf>,
    },
}

/// Runs the agent until it is told to stop. What it has put into the kernel stays there.
///
/// # Errors
/// Where it cannot begin; once a policy is in force, errors are reported by log and status.
pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;

    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("--run-dir {}", config.run_dir.display()))?;
    fs::set_permissions(&config.run_dir, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("--run-dir {}", config.run_dir.display()))?;
    let _lock = lock(&config.run_dir)?;
    // Whoever waits for this agent must not see the marker of the last.
    let ready = Ready::new(&config.run_dir)?;
    announce_own_pod(&config.kernel);

    let trust_domain = config.mesh.trust_domain.clone();
    let snapshots = Arc::new(Snapshots::default());
    let versions = snapshots.versions();
    let ca = config.ca.clone().map(|ca| CaClient::new(ca, services(snapshots.clone())));
    let ca = ca.transpose().context("--ca-address")?;
    let source = match &ca {
        Some(ca) => Source::Ca(ca.clone()),
        None => Source::Directory(Box::new(
            Authority::open(&config.ca_dir, &trust_domain, config.certificate_life)
                .context("--ca-dir")?,
        )),
    };
    let certificates = WorkloadCertificates::new(source);
    let view = match &config.manifests {
        Manifests::Directory(path) => Directory::new(path, config.mesh.clone()).watch()?,
        Manifests::Cluster { kubeconfig } => {
            Cluster::new(kubeconfig.as_deref(), config.mesh.clone()).await?.watch()
        }
    };

    // The watch comes before the programs: whatever pod begins to run is known.
    let cgroups = CgroupWatch::start(&config.kernel.pods_cgroup).context("--pods-cgroup")?;
    let kernel = Kernel::open(config.kernel.clone())?;
    let flows = Arc::new(FlowRing::new(config.flows));
    let events = kernel.flow_events()?;

    let (wanted, wanted_receiver) = watch::channel(Default::default());
    let (issued_sender, issued) = watch::channel(Default::default());
    let (proxy_sender, proxy_receiver) =
        watch::channel(Arc::new(ProxyState::new(&certificates.roots_pem())));
    let (ask, asked) = mpsc::channel(16);
    let proxy = ProxyService::new(proxy_receiver);

    let ports = ProxyPorts {
        outbound: config.kernel.settings.outbound_port,
        inbound: config.kernel.settings.inbound_port,
    };
    let observer = ObserverService {
        node: config.node.clone(),
        flows: flows.clone(),
        snapshots: snapshots.clone(),
        ask: ask.clone(),
    };
    let proxy_listener =
        bind(&proxy_socket(&config.run_dir), Allowed { uid: config.proxy_user }).await?;
    let proxies = proxies(proxy_listener, &config, ask);
    let observer_listener = bind(&observer_socket(&config.run_dir), Allowed { uid: None }).await?;

    let mut reconciler = Reconciler::new(
        config.node.clone(),
        &config.kernel,
        ports,
        kernel,
        Outputs {
            snapshots,
            flows: flows.clone(),
            proxy: proxy_sender,
            wanted,
            connected: proxy.connected(),
            ready,
            network: config
                .cni_config
                .map(|source| NetworkConfig::new(source, network_directory(&config.run_dir))),
        },
    );
    if let Some(log) = reconciler.bpf_log()? {
        tokio::spawn(async move {
            if let Err(error) = log.run().await {
                tracing::error!(%error, "the programs' log lines are no longer read");
            }
        });
    }

    let mut tasks = Tasks(vec![
        tokio::spawn({
            let mut versions = versions.clone();
            async move {
                // The authority's endpoints are part of the first policy. Its name may lead nowhere
                // on the node, and finding that out takes many seconds.
                if versions.wait_for(Option::is_some).await.is_ok() {
                    certificates.run(wanted_receiver, issued_sender).await;
                }
            }
        }),
        tokio::spawn(remember(events, flows)),
        tokio::spawn(async move {
            let served = Server::builder()
                .add_service(ProxyConfigServer::new(proxy))
                .serve_with_incoming(proxies)
                .await;
            report("the proxy's configuration", served);
        }),
        tokio::spawn(async move {
            let served = Server::builder()
                .add_service(ObserverServer::new(observer))
                .serve_with_incoming(observer_listener.incoming())
                .await;
            report("flows and status", served);
        }),
    ]);

    tasks.0.extend(ca.map(|ca| tokio::spawn(conditions::report::run(ca, versions))));

    tokio::select! {
        () = reconciler.run(view, cgroups, issued, asked) => {
            tracing::error!("the agent has nothing left to follow");
        }
        _ = terminate.recv() => tracing::info!("told to stop (SIGTERM)"),
        _ = interrupt.recv() => tracing::info!("told to stop (SIGINT)"),
    }
    notify("STOPPING=1");
    drop(tasks);
    drop(reconciler);
    tracing::info!("stopped; the policy stays in force (`weft uninstall --node` would remove it)");
    Ok(())
}

/// The connections of the proxy. Where its cgroup is not known beforehand, the programs of it are
/// attached before it hears anything.
fn proxies(
    listener: Listener,
    config: &AgentConfig,
    ask: mpsc::Sender<Ask>,
) -> impl Stream<Item = io::Result<UnixStream>> + use<> {
    let awaited = config.kernel.proxy_cgroup == ProxyCgroup::Awaited;
    let user = config.proxy_user;
    let announced = listener.incoming().then(move |connected| {
        let ask = ask.clone();
        async move {
            let connected = connected.ok()?;
            let peer = connected.peer_cred().ok()?;
            // Root may ask, too, and is not the proxy.
            if awaited
                && Some(peer.uid()) == user
                && let Err(reason) = attach_proxy(&ask, peer.pid()).await
            {
                tracing::error!(reason, "refused who connected as the proxy");
                return None;
            }
            Some(connected)
        }
    });
    announced.filter_map(|connected| connected.map(Ok))
}

async fn attach_proxy(ask: &mpsc::Sender<Ask>, process: Option<i32>) -> Result<(), String> {
    let process = process
        .and_then(|process| u32::try_from(process).ok())
        .filter(|process| *process != 0)
        .ok_or("its process is in a pid namespace that the agent does not see (hostPID)")?;
    let (answer, answered) = oneshot::channel();
    let stopping = || "the agent stops".to_owned();
    ask.send(Ask::ProxyConnected { process, answer }).await.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())?
}

/// Services as they are in force: the node may have neither the cluster's DNS nor a way to its
/// addresses of services.
fn services(snapshots: Arc<Snapshots>) -> Services {
    Arc::new(move |host, port| match snapshots.current() {
        Some(current) => endpoints(&current.mesh, host, port),
        None => Vec::new(),
    })
}

/// Keeps other agents away from the directory for as long as the file is open.
fn lock(run_dir: &Path) -> anyhow::Result<fs::File> {
    let path = run_dir.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.try_lock().with_context(|| {
        format!(
            "another agent runs with --run-dir {}: stop it, or give this one a directory of its \
             own",
            run_dir.display()
        )
    })?;
    Ok(file)
}

/// Stops its tasks when dropped.
struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn bind(path: &Path, allowed: Allowed) -> anyhow::Result<Listener> {
    Listener::bind(path, allowed).await.with_context(|| format!("socket {}", path.display()))
}

fn report(what: &str, served: Result<(), tonic::transport::Error>) {
    if let Err(error) = served {
        tracing::error!(%error, "{what} can no longer be served");
    }
}

/// Keeps the events of the kernel.
async fn remember(mut events: FlowEvents, flows: Arc<FlowRing>) {
    const AGAIN: Duration = Duration::from_secs(1);
    let mut batch = Vec::new();
    loop {
        if let Err(error) = events.read(&mut batch).await {
            tracing::error!(%error, "flow events cannot be read; trying again every second");
            tokio::time::sleep(AGAIN).await;
        }
        flows.push(&batch);
        batch.clear();
    }
}
