//! Two proxies on this machine's loopback addresses, each with an agent that serves it real
//! configuration, and real certificates. Only what eBPF would tell is supplied here.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};
use weft_common::{Endpoint, Origin, ProvenSource};
use weft_proto::v1::proxy_config_server::{ProxyConfig, ProxyConfigServer};
use weft_proto::v1::{self, ProxySettings, Update, WatchRequest};

use crate::{Attestation, Limits, Options, Proxy};

/// A CA of the mesh.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "a test's CA");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A certificate for an identity, valid from an hour ago until `left` from now.
    pub(super) fn issue(&self, identity: &str, left: time::Duration) -> v1::Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.not_before = time::OffsetDateTime::now_utc() - time::Duration::hours(1);
        params.not_after = time::OffsetDateTime::now_utc() + left;
        let certificate = params.signed_by(&key, &self.0).unwrap();
        v1::Certificate {
            identity: identity.to_owned(),
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
        }
    }
}

/// How long what is waited for may take before the wait is given up, on a busy machine, too.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) const HOUR: time::Duration = time::Duration::hours(1);

pub(super) fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// What eBPF programs would know: filled by tests before they connect.
#[derive(Clone, Default)]
pub(super) struct Records {
    origins: Arc<Mutex<HashMap<SocketAddr, Origin>>>,
    pub(super) sources: Arc<Mutex<Vec<ProvenSource>>>,
}

impl Attestation for Records {
    fn origin(&self, socket: BorrowedFd<'_>) -> io::Result<Origin> {
        let peer = SockRef::from(&socket).peer_addr()?.as_socket().unwrap();
        let origins = self.origins.lock().unwrap();
        origins.get(&peer).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_source(&self, _socket: BorrowedFd<'_>, source: &ProvenSource) -> io::Result<()> {
        self.sources.lock().unwrap().push(*source);
        Ok(())
    }
}

pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address: address.ip().into(), port: address.port().into() }
}

/// An agent as the proxy sees it.
#[derive(Clone, Default)]
pub(super) struct Agent(Arc<Mutex<AgentState>>);

#[derive(Default)]
struct AgentState {
    all: Update,
    watchers: Vec<mpsc::UnboundedSender<Result<Update, Status>>>,
}

impl Agent {
    /// Serves on a socket until the task is aborted.
    pub(super) fn serve(&self, path: &std::path::Path) -> tokio::task::JoinHandle<()> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(ProxyConfigServer::new(self.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(async move { server.await.unwrap() })
    }

    /// Ends all streams, as the agent's death does.
    pub(super) fn hang_up(&self) {
        self.0.lock().unwrap().watchers.clear();
    }

    pub(super) fn watchers(&self) -> usize {
        self.0.lock().unwrap().watchers.len()
    }

    /// Keeps an update for those who come later, and sends it to those who are there.
    pub(super) fn send(&self, update: Update) {
        let mut state = self.0.lock().unwrap();
        let all = &mut state.all;
        if update.settings.is_some() {
            all.settings = update.settings.clone();
        }
        if !update.trust_roots.is_empty() {
            all.trust_roots = update.trust_roots.clone();
        }
        all.workloads.retain(|old| {
            !update.removed_workloads.contains(&old.key)
                && update.workloads.iter().all(|new| new.key != old.key)
        });
        all.workloads.extend(update.workloads.clone());
        all.certificates.retain(|old| {
            !update.removed_certificates.contains(&old.identity)
                && update.certificates.iter().all(|new| new.identity != old.identity)
        });
        all.certificates.extend(update.certificates.clone());
        state.watchers.retain(|watcher| watcher.send(Ok(update.clone())).is_ok());
    }

    pub(super) fn send_workload(&self, workload: v1::Workload) {
        self.send(Update { workloads: vec![workload], ..Update::default() });
    }

    pub(super) fn send_certificate(&self, certificate: v1::Certificate) {
        self.send(Update { certificates: vec![certificate], ..Update::default() });
    }
}

#[tonic::async_trait]
impl ProxyConfig for Agent {
    type WatchStream = UnboundedReceiverStream<Result<Update, Status>>;

    async fn watch(
        &self,
        _request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (watcher, stream) = mpsc::unbounded_channel();
        let mut state = self.0.lock().unwrap();
        // In two messages, as a large mesh would come.
        let first = Update { settings: state.all.settings.clone(), ..Update::default() };
        let rest = Update { settings: None, synced: true, ..state.all.clone() };
        watcher.send(Ok(first)).unwrap();
        watcher.send(Ok(rest)).unwrap();
        state.watchers.push(watcher);
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}

pub(super) struct Node {
    pub(super) address: Ipv4Addr,
    pub(super) outbound: SocketAddr,
    pub(super) inbound: SocketAddr,
    pub(super) agent: Agent,
    pub(super) records: Records,
    pub(super) socket: std::path::PathBuf,
    pub(super) served: tokio::task::JoinHandle<()>,
    pub(super) proxy: Proxy,
    options: Options,
}

impl Node {
    /// Ends the proxy, and waits until it has.
    pub(super) fn stop(&mut self) {
        tokio::task::block_in_place(|| self.proxy.stop()).unwrap();
    }

    /// Starts another proxy.
    pub(super) fn start(&mut self) {
        self.proxy = Proxy::start(self.options.clone(), self.records.clone()).unwrap();
    }
}

/// Two nodes: `client` is a pod on the first, `server` on the second.
pub(super) struct Mesh {
    pub(super) authority: Authority,
    pub(super) nodes: [Node; 2],
    pub(super) client: Ipv4Addr,
    pub(super) server: Ipv4Addr,
    _directory: tempfile::TempDir,
}

static NEXT: AtomicU8 = AtomicU8::new(0);

impl Mesh {
    pub(super) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        Self::with_roots(limits, Authority::new(), None).await
    }

    /// The second node trusts `other` instead, if there is one.
    pub(super) async fn with_roots(
        limits: Limits,
        authority: Authority,
        other: Option<&Authority>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = (std::process::id() % 200) as u8 + 20;
        let test = NEXT.fetch_add(1, Ordering::Relaxed);
        let address = |host| Ipv4Addr::new(127, process, test, host);
        let (client, server) = (address(11), address(21));
        let node = |index: u8| {
            let agent = Agent::default();
            let node = address(index + 1);
            let roots = if index == 1 { other.unwrap_or(&authority) } else { &authority };
            let (outbound, inbound) = ((node, 15001).into(), (node, 15008).into());
            let local = if index == 0 { "client" } else { "server" };
            agent.send(Update {
                settings: Some(ProxySettings {
                    node: format!("node-{index}"),
                    trust_domain: "cluster.local".to_owned(),
                    outbound: vec![format!("{outbound}")],
                    inbound: vec![format!("{inbound}")],
                }),
                workloads: vec![
                    workload("client", client, address(1), index == 0),
                    workload("server", server, address(2), index == 1),
                ],
                certificates: vec![roots.issue(&identity(local), HOUR)],
                trust_roots: vec![roots.pem()],
                ..Update::default()
            });
            let socket = directory.path().join(format!("agent-{index}"));
            let served = agent.serve(&socket);
            let records = Records::default();
            let options =
                Options { agent_socket: socket.clone(), threads: 2, limits: limits.clone() };
            let proxy = Proxy::start(options.clone(), records.clone()).unwrap();
            Node {
                address: node,
                outbound,
                inbound,
                agent,
                records,
                socket,
                served,
                proxy,
                options,
            }
        };
        let nodes = [node(0), node(1)];
        for node in &nodes {
            for listener in [node.outbound, node.inbound] {
                until(async || TcpStream::connect(listener).await.is_ok()).await;
            }
        }
        Self { authority, nodes, client, server, _directory: directory }
    }

    /// A pod's connection to a port of the server's pod. It is an error already if the proxy has
    /// refused it before `connect` looks at the result.
    pub(super) async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        self.connect_from(self.client, (self.server, port).into()).await
    }

    pub(super) async fn connect_from(
        &self,
        from: Ipv4Addr,
        to: SocketAddr,
    ) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let source = socket.local_addr().unwrap();
        let origin = Origin {
            destination: endpoint(to),
            backend: endpoint(to),
            source: endpoint(source),
            pod: from.octets()[3].into(),
        };
        self.nodes[0].records.origins.lock().unwrap().insert(source, origin);
        socket.connect(self.nodes[0].outbound).await
    }

    /// As `connect`, with a record of the test's own.
    pub(super) async fn connect_with(
        &self,
        origin: impl FnOnce(SocketAddr) -> Origin,
    ) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.client, 0).into()).unwrap();
        let source = socket.local_addr().unwrap();
        self.nodes[0].records.origins.lock().unwrap().insert(source, origin(source));
        socket.connect(self.nodes[0].outbound).await
    }
}

/// A pod `shop/NAME` with the service account NAME.
pub(super) fn workload(name: &str, address: Ipv4Addr, node: Ipv4Addr, local: bool) -> v1::Workload {
    v1::Workload {
        key: format!("shop/{name}"),
        addresses: vec![address.to_string()],
        identity: identity(name),
        node: node.to_string(),
        tunnels: vec![format!("{node}:15008")],
        local,
    }
}

/// Waits for a condition.
pub(super) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the condition in time");
}
