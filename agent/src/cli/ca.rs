use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Server;
use weft_model::mesh::Settings;
use weft_proto::istio::istio_certificate_service_server::IstioCertificateServiceServer;
use weft_proto::v1::certificate_authority_server::CertificateAuthorityServer;
use weft_proto::v1::control_server::ControlServer;

use super::duration;
use crate::ca::caller::ServiceAccount;
use crate::ca::election::{Election, Leadership};
use crate::ca::listen::{Listener, server_names};
use crate::ca::pods::Pods;
use crate::ca::publish::{TRUST_BUNDLE, publish};
use crate::ca::root::{RootKeeper, RootSettings};
use crate::ca::service::{CaService, Rules};
use crate::conditions::{ControlService, LeaderSettings, Shared, cluster};

/// Requests of one connection that are served at once.
const REQUESTS_PER_CONNECTION: usize = 32;
/// A request is small.
const LARGEST_REQUEST: usize = 64 << 10;
/// A node's first report names every object.
const LARGEST_REPORT: usize = 4 << 20;
/// How long a leader tries to give its Lease back when it is told to stop.
const GIVE_BACK: Duration = Duration::from_secs(3);

/// What the certificate authority is told.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// Where to listen
    #[arg(long, env = "WEFT_CA_LISTEN", default_value = "[::]:15012", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Kubeconfig of the API server [default: the pod's service account, else as kubectl]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the authority's Service, Secrets and Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "weft-system", value_name = "NAMESPACE")]
    namespace: String,
    /// Name of this replica in the Lease
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pod: Option<String>,
    /// SPIFFE trust domain
    #[arg(
        long,
        env = "WEFT_TRUST_DOMAIN",
        default_value = "cluster.local",
        value_parser = super::agent::trust_domain,
        value_name = "DOMAIN"
    )]
    trust_domain: String,
    /// Domain of the cluster's Services
    #[arg(long, default_value = "cluster.local", value_name = "DOMAIN")]
    cluster_domain: String,
    /// Service through which agents reach the authority
    #[arg(long, default_value = "weft-ca", value_name = "NAME")]
    service: String,
    /// Secret with the root (tls.crt, tls.key, ca.crt); made if it is not there
    #[arg(long, default_value = "weft-ca", value_name = "NAME")]
    secret: String,
    /// Secret in which the authority remembers the roots that are trusted
    #[arg(long, default_value = "weft-ca-roots", value_name = "NAME")]
    roots_secret: String,
    /// Lease by which the replicas elect a leader
    #[arg(long, default_value = "weft-ca", value_name = "NAME")]
    lease: String,
    /// ConfigMap that is published to every namespace (key ca.crt)
    #[arg(long, default_value = TRUST_BUNDLE, value_name = "NAME")]
    trust_bundle: String,
    /// How long certificates live for which no life was asked
    #[arg(long, default_value = "1h", value_parser = duration::parse, value_name = "TIME")]
    certificate_life: Duration,
    /// The longest life that may be asked for
    #[arg(long, default_value = "24h", value_parser = duration::parse, value_name = "TIME")]
    longest_life: Duration,
    /// How long a new root is published before anything is issued below it
    #[arg(long, default_value = "2m", value_parser = duration::parse, value_name = "TIME")]
    root_propagation: Duration,
    /// How long a root stays trusted after the Secret names it no more
    #[arg(long, default_value = "25h", value_parser = duration::parse, value_name = "TIME")]
    root_grace: Duration,
    /// Namespace whose Istio policies act on the whole mesh, as the agents are told
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
    /// DaemonSet of the agents, which says on how many nodes objects should be in force
    #[arg(long, default_value = "weft-agent", value_name = "NAME")]
    agent_daemonset: String,
    /// Service account of Weft's agents
    #[arg(long, default_value = "weft-system/weft-agent", value_name = "NAMESPACE/NAME")]
    agent_account: Vec<ServiceAccount>,
    /// Audience of the agents' tokens
    #[arg(long, default_value = "weft-ca", value_name = "AUDIENCE")]
    audience: String,
    /// Service account of another mesh's node proxies (as istio-system/ztunnel), which may ask by
    /// Istio's protocol for certificates of the pods of their node
    #[arg(long, value_name = "NAMESPACE/NAME")]
    node_proxy_account: Vec<ServiceAccount>,
    /// Audience of tokens for Istio's protocol
    #[arg(long, default_value = "istio-ca", value_name = "AUDIENCE")]
    istio_audience: String,
    /// Let every pod have a certificate of its own service account by Istio's protocol
    #[arg(long)]
    own_certificates: bool,
}

impl CaArgs {
    fn root(&self) -> RootSettings {
        RootSettings {
            namespace: self.namespace.clone(),
            secret: self.secret.clone(),
            history: self.roots_secret.clone(),
            trust_domain: self.trust_domain.clone(),
            life: self.certificate_life,
            propagation: self.root_propagation,
            grace: self.root_grace,
        }
    }

    fn status(&self, candidate: &str) -> LeaderSettings {
        LeaderSettings {
            mesh: Settings {
                trust_domain: self.trust_domain.as_str().into(),
                root_namespace: self.root_namespace.as_str().into(),
                certificate_life: self.certificate_life,
                ..Settings::default()
            },
            agents: (self.namespace.clone(), self.agent_daemonset.clone()),
            instance: candidate.to_owned(),
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            trust_domain: self.trust_domain.clone(),
            agents: self.agent_account.clone(),
            audience: self.audience.clone(),
            node_proxies: self.node_proxy_account.clone(),
            istio_audience: self.istio_audience.clone(),
            own_certificates: self.own_certificates,
            longest: self.longest_life,
        }
    }
}

pub(super) fn run(args: &CaArgs) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("runtime")?
        .block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &CaArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
    let client = cluster::client(args.kubeconfig.as_deref()).await?;
    tokio::select! {
        () = await_api_server(&client) => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let (leading_sender, leading) = watch::channel(false);
    let (stop, stopped) = watch::channel(false);

    let (keeper, root) =
        RootKeeper::open(client.clone(), args.root(), leading.clone()).await.context("the root")?;
    let pods = Pods::follow(client.clone());
    let listener = {
        // Whoever is told that the authority is ready must be served without a doubt.
        pods.synced().await;
        let names = server_names(&args.service, &args.namespace, &args.cluster_domain);
        Listener::bind(args.listen, names, root.authority.clone()).await?
    };
    tracing::info!(address = %listener.local_address()?, "issues certificates");

    let candidate = candidate(args)?;
    let election = Election::new(client.clone(), &args.namespace, &args.lease, &candidate);
    let election = tokio::spawn(election.run(leading_sender, stopped.clone()));
    tokio::spawn(keeper.run());
    let leadership = Leadership { client: client.clone(), leading };
    lead(args, &leadership, &root.bundle);
    let board = Shared::default();
    tokio::spawn({
        let (board, settings) = (board.clone(), args.status(&candidate));
        leadership.while_leading(move |client| board.clone().lead(client, settings.clone()))
    });

    let service = CaService::new(client, args.rules(), root, pods);
    let served = Server::builder()
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(
            CertificateAuthorityServer::new(service.clone())
                .max_decoding_message_size(LARGEST_REQUEST),
        )
        .add_service(
            ControlServer::new(ControlService::new(board, service.clone()))
                .max_decoding_message_size(LARGEST_REPORT),
        )
        .add_service(
            IstioCertificateServiceServer::new(service).max_decoding_message_size(LARGEST_REQUEST),
        )
        .serve_with_incoming(listener.incoming());
    tokio::select! {
        served = served => served.context("certificates can no longer be served")?,
        _ = terminate.recv() => tracing::info!("told to stop (SIGTERM)"),
        _ = interrupt.recv() => tracing::info!("told to stop (SIGINT)"),
    }
    stop.send_replace(true);
    if timeout(GIVE_BACK, election).await.is_err() {
        tracing::warn!("the Lease was not given back; it ends by itself");
    }
    Ok(())
}

/// Waits until the API server is reached. A pod that begins reaches nobody until its node's agent
/// knows it, and that may be being replaced at the same time.
async fn await_api_server(client: &Client) {
    const AGAIN: Duration = Duration::from_millis(250);

    let mut said = false;
    while let Err(error @ (kube::Error::Service(_) | kube::Error::HyperError(_))) =
        client.apiserver_version().await
    {
        if !said {
            tracing::warn!(%error, "the API server is not reached; trying again");
        }
        said = true;
        tokio::time::sleep(AGAIN).await;
    }
}

/// What only the leader does.
fn lead(args: &CaArgs, leadership: &Leadership, bundle: &watch::Receiver<std::sync::Arc<str>>) {
    let (name, bundle) = (args.trust_bundle.clone(), bundle.clone());
    tokio::spawn(
        leadership
            .clone()
            .while_leading(move |client| publish(client, name.clone(), bundle.clone())),
    );
}

/// A name that no other replica has.
fn candidate(args: &CaArgs) -> anyhow::Result<String> {
    if let Some(pod) = &args.pod {
        return Ok(pod.clone());
    }
    let host = rustix::system::uname();
    let host = host.nodename().to_str().context("the host's name is not UTF-8; give --pod")?;
    Ok(format!("{host}_{}", std::process::id()))
}
