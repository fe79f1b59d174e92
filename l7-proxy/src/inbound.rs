//! Tunnels from other nodes to this node's pods.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::FORWARDED;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use weft_common::{Endpoint, ProvenSource};

use crate::bounds::Share;
use crate::forwarded;
use crate::identity::SpiffeId;
use crate::listener;
use crate::relay::relay;
use crate::snapshot::Snapshot;
use crate::tls::{self, Credentials};
use crate::tunnel::{
    Coalesced, FRAME, HEADER_LIST, RESET_STREAMS, SEND_BUFFER, ServerTls, StreamWindow, TLS_BUFFER,
    TUNNEL_WINDOW, TunnelSocket, at, poll_driven, unanswered,
};
use crate::worker::Worker;

/// Serves a tunnel listener until the worker closes.
pub(crate) async fn serve(worker: Rc<Worker>, listener: TcpListener) {
    let mut closing = worker.closing.subscribe();
    while let Some((socket, peer)) = listener::accept(&listener, &mut closing).await {
        let Some(share) = worker.handshakes.take(peer.ip()) else {
            worker.complain(peer, &"too many handshakes under way from this address");
            // A socket of which not even this can be set is closed already.
            let _ = listener::reset_at_end(&socket);
            continue;
        };
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            if let Err(failure) = tunnel(&worker, socket, peer, share).await {
                worker.complain(peer, &failure);
            }
        });
    }
}

/// Who is at the other end of a tunnel, and whom it reaches.
struct Tunnel {
    peer: SocketAddr,
    /// Proven by the client's certificate.
    client: SpiffeId,
    /// What the server's certificate proved to the client.
    credentials: Arc<Credentials>,
    valid_until: SystemTime,
    active: Cell<usize>,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no TLS: {0}")]
    Tls(#[from] io::Error),
    #[error("no certificate here for {name:?} at {to}")]
    NoCertificate { name: Option<String>, to: IpAddr },
    #[error("the client's certificate: {0}")]
    Client(#[from] crate::identity::InvalidIdentity),
    #[error("the client has no certificate")]
    NoClient,
    #[error("no HTTP/2: {0}")]
    Http(#[from] h2::Error),
    #[error("no handshake in time")]
    Timeout,
    #[error("this address has too many tunnels")]
    TooMany,
}

async fn tunnel(
    worker: &Rc<Worker>,
    socket: TcpStream,
    peer: SocketAddr,
    share: Share<IpAddr>,
) -> Result<(), Failure> {
    let limits = &worker.shared.limits;
    let mut first = [0];
    let said = tokio::time::timeout(limits.handshake, socket.peek(&mut first));
    if said.await.map_err(|_| Failure::Timeout)?? == 0 {
        // Nothing: a kubelet, for one, asks so whether the proxy is ready.
        return Ok(());
    }
    let handshakes = async {
        let (tls, tunnel) = handshake(worker, socket, peer).await?;
        let io = Coalesced::new(tls);
        let connection = h2::server::Builder::new()
            .initial_window_size(StreamWindow::WIDEST)
            .initial_connection_window_size(TUNNEL_WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(limits.streams_per_tunnel)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .max_local_error_reset_streams(None)
            .handshake(io.share())
            .await?;
        Ok::<_, Failure>((tunnel, io, connection))
    };
    let (tunnel, io, connection) = tokio::time::timeout(limits.handshake, handshakes)
        .await
        .map_err(|_| Failure::Timeout)??;
    let _share = worker.tunnels.take(peer.ip()).ok_or(Failure::TooMany)?;
    drop(share);
    let tunnel = Rc::new(tunnel);
    tracing::debug!(%peer, client = %tunnel.client, server = %tunnel.credentials.identity, "tunnel open");
    if let Err(error) = drive(worker, &tunnel, connection, io).await {
        tracing::info!(%peer, client = %tunnel.client, %error, "tunnel broken");
    }
    Ok(())
}

async fn handshake(
    worker: &Worker,
    socket: TcpStream,
    peer: SocketAddr,
) -> Result<(ServerTls, Tunnel), Failure> {
    let to = socket.local_addr()?.ip().to_canonical();
    let socket = TunnelSocket::new(socket);
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let name = start.client_hello().server_name().map(str::to_owned);
    let requested = |snapshot: &Snapshot| snapshot.requested(name.as_deref(), to).cloned();
    let Some(credentials) = worker.shared.find(requested).await else {
        return Err(Failure::NoCertificate { name, to });
    };
    let mut tls = start.into_stream(credentials.server.clone()).await?;
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or(Failure::NoClient)?;
    let client = SpiffeId::of(leaf)?;
    let valid_until = tls::not_after(leaf)?.min(credentials.not_after);
    Ok((tls, Tunnel { peer, client, credentials, valid_until, active: Cell::new(0) }))
}

/// Takes a tunnel's connections until it has ended. It is closed gently (its client opens
/// another, and its connections go on) when the server's credentials have changed, when a
/// certificate expires, after it has been idle for long, and when the worker closes.
async fn drive(
    worker: &Rc<Worker>,
    tunnel: &Rc<Tunnel>,
    mut connection: Connection<Coalesced<ServerTls>, Bytes>,
    io: Coalesced<ServerTls>,
) -> Result<(), h2::Error> {
    let shared = &worker.shared;
    let mut unanswered = std::pin::pin!(unanswered(connection.ping_pong(), &shared.limits));
    let mut retire = std::pin::pin!(retire(worker, tunnel));
    let mut retired = false;
    let mut window = StreamWindow::new();
    loop {
        window.follow(tunnel.active.get(), |size| connection.set_initial_window_size(size));
        let accept = poll_fn(|cx| {
            poll_driven(
                cx,
                &io,
                |cx| connection.poll_accept(cx),
                |error| {
                    tracing::debug!(%error, "cannot send on a tunnel");
                    Some(Err(Reason::CONNECT_ERROR.into()))
                },
            )
        });
        tokio::select! {
            accepted = accept => match accepted {
                Some(Ok((request, respond))) => {
                    tunnel.active.set(tunnel.active.get() + 1);
                    let (worker, tunnel) = (worker.clone(), tunnel.clone());
                    tokio::task::spawn_local(async move {
                        stream(&worker, &tunnel, request, respond).await;
                        tunnel.active.set(tunnel.active.get() - 1);
                    });
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = &mut unanswered => return Err(Reason::NO_ERROR.into()),
            () = &mut retire, if !retired => {
                retired = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// Ends when a tunnel should take no more connections.
async fn retire(worker: &Worker, tunnel: &Tunnel) {
    let shared = &worker.shared;
    let mut changes = shared.changes();
    let mut closing = worker.closing.subscribe();
    // Longer than the client's time: it closes what it does not need without a race.
    let mut idle = tokio::time::interval(shared.limits.tunnel_idle * 2);
    idle.tick().await;
    let mut expired = at(tunnel.valid_until);
    let mut was_idle = false;
    loop {
        // First of all: they may have changed since the handshake took them.
        let snapshot = shared.snapshot();
        let current = snapshot.credentials(&tunnel.credentials.identity);
        if current.is_none_or(|current| !Arc::ptr_eq(current, &tunnel.credentials)) {
            return;
        }
        drop(snapshot);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            _ = idle.tick() => {
                let is_idle = tunnel.active.get() == 0;
                if is_idle && was_idle {
                    return;
                }
                was_idle = is_idle;
            }
            () = &mut expired => return,
            _ = closing.changed() => return,
        }
    }
}

/// Why a connection is not made.
struct Refusal(StatusCode, &'static str);

async fn stream(
    worker: &Worker,
    tunnel: &Tunnel,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (mut socket, _share) = match connect(worker, tunnel, &request).await {
        Ok(connected) => connected,
        Err(Refusal(status, reason)) => {
            let target = request.uri().authority().map(|authority| authority.as_str());
            let target = target.unwrap_or_default();
            tracing::debug!(peer = %tunnel.peer, client = %tunnel.client, target, %status, reason, "refused");
            let mut response = Response::new(());
            *response.status_mut() = status;
            let reason = HeaderValue::from_static(reason);
            response.headers_mut().insert(forwarded::REASON, reason);
            // Fails if the client has given up; there is nobody to tell.
            let _ = respond.send_response(response, true);
            return;
        }
    };
    match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let receive = std::future::ready(Ok(request.into_body()));
            match relay(&mut socket, send, receive).await {
                Ok(()) => listener::close(socket),
                Err(broken) => {
                    tracing::debug!(peer = %tunnel.peer, client = %tunnel.client, %broken, "connection ended");
                }
            }
        }
        // The client has given up.
        Err(_) => drop(socket),
    }
}

/// Checks what a request claims, and connects to the pod on the client's behalf.
async fn connect(
    worker: &Worker,
    tunnel: &Tunnel,
    request: &Request<RecvStream>,
) -> Result<(TcpStream, Share<IpAddr>), Refusal> {
    let shared = &worker.shared;
    if request.method() != Method::CONNECT {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT"));
    }
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let target: SocketAddr = authority
        .and_then(|authority| authority.parse().ok())
        .ok_or(Refusal(StatusCode::BAD_REQUEST, "the authority is not ip:port"))?;
    let headers = request.headers();
    let source = match headers.get(FORWARDED) {
        Some(value) => forwarded::client(value)
            .ok_or(Refusal(StatusCode::BAD_REQUEST, "forwarded has no address"))?,
        // Other HBONE clients are the pod, or bear its address.
        None => SocketAddr::new(tunnel.peer.ip(), 0),
    };
    let dialled = headers.get(forwarded::DESTINATION).and_then(|value| value.to_str().ok());
    let dialled = dialled.and_then(|dialled| dialled.parse().ok()).unwrap_or(target);

    if SystemTime::now() >= tunnel.valid_until {
        return Err(Refusal(StatusCode::FORBIDDEN, "the tunnel's certificate has expired"));
    }
    if shared.find(|snapshot| tunnel.admits(snapshot, source.ip(), target.ip())).await.is_none() {
        let snapshot = shared.snapshot();
        return Err(tunnel.refusal(&snapshot, source.ip(), target.ip()));
    }
    let share = worker.sources.take(source.ip());
    let share = share
        .ok_or(Refusal(StatusCode::SERVICE_UNAVAILABLE, "the client has too many connections"))?;

    let socket = listener::socket(target, None)
        .map_err(|_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "no socket"))?;
    let proven = ProvenSource { source: endpoint(source), destination: endpoint(dialled) };
    listener::reset_at_end(&socket)
        .map_err(|_| Refusal(StatusCode::SERVICE_UNAVAILABLE, "no socket"))?;
    shared.attestation.set_source(socket.as_fd(), &proven).map_err(|error| {
        tracing::error!(%error, "the kernel does not take a proven source");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, "the kernel does not take a proven source")
    })?;
    match tokio::time::timeout(shared.limits.connect, socket.connect(target)).await {
        Ok(Ok(socket)) => Ok((socket, share)),
        Ok(Err(error)) => Err(match error.kind() {
            io::ErrorKind::PermissionDenied => Refusal(StatusCode::FORBIDDEN, "policy denies it"),
            io::ErrorKind::TimedOut => Refusal(StatusCode::GATEWAY_TIMEOUT, "no answer"),
            _ => Refusal(StatusCode::SERVICE_UNAVAILABLE, "the pod refuses it"),
        }),
        Err(_) => Err(Refusal(StatusCode::GATEWAY_TIMEOUT, "no answer")),
    }
}

impl Tunnel {
    /// Whether this tunnel may carry a connection: the target is a pod of this node with the
    /// identity that the client asked for, and the source a pod with the identity that it proved,
    /// on the node from which the tunnel comes.
    fn admits(&self, snapshot: &Snapshot, source: IpAddr, target: IpAddr) -> Option<()> {
        (self.reaches(snapshot, target) && self.speaks_for(snapshot, source)).then_some(())
    }

    fn reaches(&self, snapshot: &Snapshot, target: IpAddr) -> bool {
        let workload = snapshot.workload(target).filter(|workload| workload.local);
        workload.is_some_and(|workload| workload.identity == self.credentials.identity)
    }

    fn speaks_for(&self, snapshot: &Snapshot, source: IpAddr) -> bool {
        snapshot.workload(source).is_some_and(|workload| {
            workload.identity == self.client && workload.may_come_from(self.peer.ip())
        })
    }

    fn refusal(&self, snapshot: &Snapshot, source: IpAddr, target: IpAddr) -> Refusal {
        let reason = if !self.reaches(snapshot, target) {
            "the target is no pod here with the tunnel's identity"
        } else if snapshot.workload(source).is_none_or(|source| source.identity != self.client) {
            "the source is no pod with the client's identity"
        } else {
            "the source is not on the node that the tunnel comes from"
        };
        Refusal(StatusCode::FORBIDDEN, reason)
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address: address.ip().into(), port: address.port().into() }
}
