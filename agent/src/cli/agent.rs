use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tonic::transport::Uri;
use weft_model::dialect::is_trust_domain;
use weft_model::mesh;

use super::duration;
use crate::agent::{AgentConfig, CA_DIR, Manifests, PIN_DIR, RUN_DIR, run as run_agent};
use crate::ca::channel::CaAddress;
use crate::kernel::{self, AccelerationMode, MapSizes, ProxyCgroup, cgroups};

/// Where the chart mounts the token and the trusted roots.
const CA_TOKEN: &str = "/var/run/secrets/tokens/weft-ca";
const CA_ROOT: &str = "/var/run/secrets/weft-trust-bundle/ca.crt";

/// What the agent is told.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Name of this node, as in the manifests
    #[arg(long, env = "WEFT_NODE", value_name = "NAME")]
    node: String,
    /// Directory with Kubernetes YAML, read at any depth and watched, in place of an API server
    #[arg(long, env = "WEFT_MANIFESTS", value_name = "DIR", conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// Kubeconfig whose current context names the API server [default: the one of the cluster
    /// whose pod this is]
    #[arg(long, env = "WEFT_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where the agent's sockets are made
    #[arg(long, env = "WEFT_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,
    /// Where programs and maps are pinned, on a BPF file system
    #[arg(long, env = "WEFT_PIN_DIR", default_value = PIN_DIR, value_name = "DIR")]
    pin_dir: PathBuf,
    /// Directory of the CNI's configuration, which the container runtime gets from RUN_DIR/cni once a
    /// policy is in force: no pod starts before [default: pods are not kept back]
    #[arg(long, env = "WEFT_CNI_CONFIG", value_name = "DIR")]
    cni_config: Option<PathBuf>,
    /// Root of the pods' cgroups [default: kubepods.slice or kubepods in the hierarchy]
    #[arg(long, env = "WEFT_PODS_CGROUP", value_name = "PATH")]
    pods_cgroup: Option<PathBuf>,
    /// Cgroup of the node's proxy, or `own-pod` where it is a container of the agent's pod
    /// [default: there is no proxy]
    #[arg(
        long,
        env = "WEFT_PROXY_CGROUP",
        value_parser = proxy_cgroup,
        value_name = "PATH",
        default_value = "",
        hide_default_value = true
    )]
    proxy_cgroup: ProxyCgroup,
    /// User that the node's proxy runs as; beside root, only it gets the proxy's configuration
    #[arg(long, env = "WEFT_PROXY_USER", value_name = "UID")]
    proxy_user: Option<u32>,
    /// Directory of the trust root; made if it is not there
    #[arg(long, env = "WEFT_CA_DIR", default_value = CA_DIR, value_name = "DIR")]
    ca_dir: PathBuf,
    #[command(flatten)]
    ca: CaClientArgs,
    /// How long workloads' certificates live; they are renewed at half of it
    #[arg(long, default_value = "1h", value_parser = duration::parse, value_name = "TIME")]
    certificate_life: Duration,
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    /// How many flows are remembered for `weft observe`
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    flows: usize,
}

/// How the agent reaches the cluster's certificate authority.
#[derive(Debug, Args)]
struct CaClientArgs {
    /// The cluster's certificate authority [default: the root in --ca-dir issues]
    #[arg(long, env = "WEFT_CA_ADDRESS", value_name = "https://HOST:PORT")]
    ca_address: Option<Uri>,
    /// Name in its certificate, where it is not that of the address
    #[arg(long, env = "WEFT_CA_NAME", value_name = "NAME", requires = "ca_address")]
    ca_name: Option<String>,
    /// File with the service account token that proves this agent to it
    #[arg(long, env = "WEFT_CA_TOKEN", default_value = CA_TOKEN, value_name = "FILE")]
    ca_token: PathBuf,
    /// File with the trusted roots (ca.crt of the ConfigMap weft-trust-bundle)
    #[arg(long, env = "WEFT_CA_ROOT", default_value = CA_ROOT, value_name = "FILE")]
    ca_root: PathBuf,
}

impl CaClientArgs {
    fn address(self, life: Duration) -> Option<CaAddress> {
        Some(CaAddress {
            address: self.ca_address?,
            server_name: self.ca_name,
            token: self.ca_token,
            roots: self.ca_root,
            life,
        })
    }
}

/// How manifests are read.
#[derive(Clone, Debug, Args)]
pub struct MeshArgs {
    /// SPIFFE trust domain
    #[arg(
        long,
        env = "WEFT_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_parser = trust_domain,
        value_name = "DOMAIN"
    )]
    trust_domain: String,
    /// Namespace whose Istio policies act on the whole mesh
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// Which pods are in the mesh where no label says so
    #[arg(long, value_enum, default_value_t)]
    enroll: Enroll,
    /// Whether same-node traffic may go directly, or must be encrypted too
    #[arg(long, value_enum, default_value_t)]
    same_node: SameNode,
}

/// Which pods are in the mesh where neither they nor their namespace say so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Enroll {
    /// None: `weft.dev/mesh: enabled` or `istio.io/dataplane-mode: ambient` is needed.
    #[default]
    Labelled,
    /// All.
    All,
}

/// What same-node traffic does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SameNode {
    /// Goes from socket to socket; the kernel attests both ends.
    #[default]
    Direct,
    /// Goes through the proxy, encrypted.
    Mtls,
}

/// What pods may do that the agent does not know yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum UnknownPods {
    /// Nothing.
    #[default]
    Deny,
    /// Everything.
    Allow,
}

/// Whether sockets are accelerated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Acceleration {
    /// Where unread bytes can be bounded.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Also where they cannot.
    Unbounded,
}

#[derive(Debug, Args)]
struct KernelArgs {
    /// Whether sockets of one node are joined below TCP
    #[arg(long, value_enum, default_value_t)]
    acceleration: Acceleration,
    /// Bytes that an accelerated reader may leave unread [default: its receive buffer, at least 1 MiB]
    #[arg(long, value_name = "BYTES")]
    acceleration_bound: Option<u32>,
    /// What pods may do that the agent does not know yet
    #[arg(long, value_enum, default_value_t)]
    unknown_pods: UnknownPods,
    /// Port of the proxy for this node's pods
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    outbound_port: u16,
    /// Port of every proxy for tunnels (HBONE)
    #[arg(long, default_value_t = 15008, value_name = "PORT")]
    inbound_port: u16,
    /// TCP connections that a pod may hold
    #[arg(long, default_value_t = kernel::Settings::default().connections_per_pod, value_name = "N")]
    connections_per_pod: u32,
    /// Flows without connection (UDP, ICMP) that are remembered of a pod
    #[arg(long, default_value_t = kernel::Settings::default().flows_per_pod, value_name = "N")]
    flows_per_pod: u32,
    /// Size of a map, where it is made anew: `CONNECTIONS=500000` (entries; bytes for FLOWS)
    #[arg(long = "map-size", value_parser = map_size, value_name = "MAP=N")]
    map_sizes: Vec<(String, u32)>,
    /// Let the eBPF programs log, at the levels debug and trace
    #[arg(long)]
    bpf_log: bool,
}

impl MeshArgs {
    /// The settings that manifests are read with.
    pub fn settings(&self) -> mesh::Settings {
        mesh::Settings {
            trust_domain: self.trust_domain.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            enroll_by_default: self.enroll == Enroll::All,
            same_node_mtls: self.same_node_mtls(),
            ..mesh::Settings::default()
        }
    }

    /// Whether same-node traffic is encrypted.
    pub fn same_node_mtls(&self) -> bool {
        self.same_node == SameNode::Mtls
    }
}

impl AgentArgs {
    fn config(self) -> anyhow::Result<AgentConfig> {
        let pods_cgroup = match self.pods_cgroup {
            Some(path) => path,
            None => cgroups::find_pods_root()?,
        };
        let mut map_sizes = MapSizes::default();
        for (map, size) in self.kernel.map_sizes {
            map_sizes.set(map, size);
        }
        Ok(AgentConfig {
            node: self.node.into(),
            manifests: match self.manifests {
                Some(directory) => Manifests::Directory(directory),
                None => Manifests::Cluster { kubeconfig: self.kubeconfig },
            },
            run_dir: self.run_dir,
            cni_config: self.cni_config,
            ca_dir: self.ca_dir,
            ca: self.ca.address(self.certificate_life),
            certificate_life: self.certificate_life,
            proxy_user: self.proxy_user,
            flows: self.flows,
            kernel: kernel::Options {
                proxy_cgroup: self.proxy_cgroup,
                acceleration: match self.kernel.acceleration {
                    Acceleration::Auto => AccelerationMode::Auto,
                    Acceleration::Off => AccelerationMode::Off,
                    Acceleration::Unbounded => AccelerationMode::Unbounded,
                },
                map_sizes,
                bpf_log: self.kernel.bpf_log,
                settings: kernel::Settings {
                    outbound_port: self.kernel.outbound_port,
                    inbound_port: self.kernel.inbound_port,
                    connections_per_pod: self.kernel.connections_per_pod,
                    flows_per_pod: self.kernel.flows_per_pod,
                    acceleration_bound: self.kernel.acceleration_bound.unwrap_or(0),
                    same_node_mtls: self.mesh.same_node_mtls(),
                    unknown_allowed: self.kernel.unknown_pods == UnknownPods::Allow,
                    ..kernel::Settings::default()
                },
                ..kernel::Options::new(self.pin_dir, pods_cgroup)
            },
            mesh: mesh::Settings {
                certificate_life: self.certificate_life,
                ..self.mesh.settings()
            },
        })
    }
}

/// The name of a trust domain.
pub(super) fn trust_domain(text: &str) -> Result<String, String> {
    match is_trust_domain(text) {
        true => Ok(text.to_owned()),
        false => Err("a trust domain has lower-case letters, digits, '.', '-' and '_', and no \
                      spiffe:// before it"
            .to_owned()),
    }
}

fn proxy_cgroup(text: &str) -> Result<ProxyCgroup, Infallible> {
    Ok(match text {
        "" => ProxyCgroup::Absent,
        "own-pod" => ProxyCgroup::Awaited,
        path => ProxyCgroup::At(path.into()),
    })
}

fn map_size(text: &str) -> Result<(String, u32), String> {
    let (map, size) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form MAP=N, as CONNECTIONS=500000"))?;
    let size = size
        .parse()
        .ok()
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("{size:?} is no number of entries"))?;
    Ok((map.to_ascii_uppercase(), size))
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let config = args.config()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("runtime")?
        .block_on(run_agent(config))?;
    Ok(ExitCode::SUCCESS)
}
