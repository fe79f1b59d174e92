//! Connections of this node's pods to pods elsewhere.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use http::header::FORWARDED;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use tokio::net::{TcpListener, TcpStream};
use weft_common::{Endpoint, Origin};

use crate::forwarded;
use crate::listener;
use crate::relay::{Broken, relay};
use crate::snapshot::{Snapshot, Workload};
use crate::tls::Credentials;
use crate::tunnel::TunnelKey;
use crate::worker::Worker;

/// Serves an outbound listener until the worker closes.
pub(crate) async fn serve(worker: Rc<Worker>, listener: TcpListener) {
    let mut closing = worker.closing.subscribe();
    while let Some((socket, peer)) = listener::accept(&listener, &mut closing).await {
        let worker = worker.clone();
        tokio::task::spawn_local(async move { connection(&worker, socket, peer).await });
    }
}

/// Why a pod's connection was reset.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the kernel has no record of the connection: {0}")]
    NoRecord(std::io::Error),
    #[error("the kernel's record is of {0}")]
    OtherSource(SocketAddr),
    #[error("pod {0} has as many connections as it may (--connections-per-pod)")]
    TooMany(u32),
    #[error("the source is no workload of this node, has no certificate, or {0} is no workload")]
    Unknown(SocketAddr),
    #[error("{0}")]
    Tunnel(#[from] crate::tunnel::TunnelError),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Broken(#[from] Broken),
}

async fn connection(worker: &Rc<Worker>, mut socket: TcpStream, peer: SocketAddr) {
    let Err(failure) = carry(worker, &mut socket, peer).await else {
        return listener::close(socket);
    };
    match &failure {
        // Resets are what applications do.
        Failure::Broken(Broken::Socket(_) | Broken::Stream(_)) => {
            tracing::debug!(client = %peer, %failure, "connection ended");
        }
        _ => worker.complain(peer, &failure),
    }
}

async fn carry(
    worker: &Rc<Worker>,
    socket: &mut TcpStream,
    peer: SocketAddr,
) -> Result<(), Failure> {
    let shared = &worker.shared;
    let origin = shared.attestation.origin(socket.as_fd()).map_err(Failure::NoRecord)?;
    let source = socket_address(origin.source);
    if source != peer {
        return Err(Failure::OtherSource(source));
    }
    let _share = worker.clients.take(origin.pod).ok_or(Failure::TooMany(origin.pod))?;
    let backend = socket_address(origin.backend);
    let ends = shared.find(|snapshot| Ends::find(snapshot, source.ip(), backend.ip())).await;
    let ends = ends.ok_or(Failure::Unknown(backend))?;
    let key = TunnelKey {
        source: ends.source.identity.clone(),
        destination: ends.destination.identity.clone(),
        to: ends.to,
    };
    let from = ends.source.node_address(ends.to);
    let request = request(&ends.source, &origin)?;

    let mut tries = 0;
    let (_lease, response, send) = loop {
        let lease = worker.pool.lease(&key, from, &ends.credentials, &shared.limits).await?;
        match lease.open(request.clone()) {
            Ok((response, send)) => break (lease, response, send),
            // The tunnel ended a moment ago; nothing has been sent.
            Err(error) if tries == 2 => return Err(Broken::Stream(error).into()),
            Err(_) => tries += 1,
        }
    };
    let receive = async {
        let response = response.await?;
        if response.status() != StatusCode::OK {
            let reason = response.headers().get(forwarded::REASON);
            let reason = reason.and_then(|reason| reason.to_str().ok()).unwrap_or_default();
            let (status, reason) = (response.status(), reason.to_owned());
            return Err(Broken::Refused { status, reason });
        }
        Ok(response.into_body())
    };
    Ok(relay(socket, send, receive).await?)
}

/// Whom a connection joins.
struct Ends {
    source: Arc<Workload>,
    credentials: Arc<Credentials>,
    destination: Arc<Workload>,
    to: SocketAddr,
}

impl Ends {
    fn find(snapshot: &Snapshot, source: IpAddr, destination: IpAddr) -> Option<Self> {
        let source = snapshot.workload(source).filter(|source| source.local)?;
        let workload = snapshot.workload(destination)?;
        Some(Self {
            credentials: snapshot.credentials(&source.identity)?.clone(),
            to: workload.tunnel(destination)?,
            source: source.clone(),
            destination: workload.clone(),
        })
    }
}

fn request(source: &Workload, origin: &Origin) -> Result<Request<()>, http::Error> {
    let authority = socket_address(origin.backend).to_string();
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::builder().authority(authority).build()?)
        .header(
            HeaderName::from_static(forwarded::DESTINATION),
            HeaderValue::try_from(socket_address(origin.destination).to_string())?,
        );
    if let Some(client) = forwarded::value(socket_address(origin.source)) {
        request = request.header(FORWARDED, client);
    }
    if let Some((namespace, pod)) = source.key.split_once('/')
        && let Ok(baggage) =
            HeaderValue::try_from(format!("k8s.namespace.name={namespace},k8s.pod.name={pod}"))
    {
        request = request.header("baggage", baggage);
    }
    request.body(())
}

fn socket_address(endpoint: Endpoint) -> SocketAddr {
    // A port is 16 bits; the record's word is wider for alignment only.
    SocketAddr::new(endpoint.address.into(), endpoint.port as u16)
}
