use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::Request;
use rustls::pki_types::ServerName;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::{
    ClientTls, Coalesced, FRAME, HEADER_LIST, RESET_STREAMS, SEND_BUFFER, StreamWindow, TLS_BUFFER,
    TUNNEL_WINDOW, TunnelSocket, poll_driven, unanswered,
};
use crate::bounds::Limits;
use crate::identity::SpiffeId;
use crate::listener;
use crate::tls::{self, Credentials};

/// What a tunnel is for: from one identity, to one identity, at one proxy.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TunnelKey {
    pub(crate) source: SpiffeId,
    pub(crate) destination: SpiffeId,
    pub(crate) to: SocketAddr,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("cannot connect to {to}: {error}")]
    Connect { to: SocketAddr, error: Arc<io::Error> },
    #[error("no TLS with {to}: {error}")]
    Tls { to: SocketAddr, error: Arc<io::Error> },
    #[error("no HTTP/2 with {to}: {error}")]
    Http { to: SocketAddr, error: Arc<h2::Error> },
    #[error("no answer from {to} in time")]
    Timeout { to: SocketAddr },
    #[error("{to} takes no more connections: all {tunnels} tunnels are full")]
    Full { to: SocketAddr, tunnels: usize },
    #[error("{0}")]
    Configuration(Arc<str>),
}

impl TunnelError {
    /// Whether a proxy may come that answers otherwise: nobody listens, or whoever does hangs up
    /// before it has proven who it is.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connect { error, .. } => error.kind() == io::ErrorKind::ConnectionRefused,
            Self::Tls { error, .. } => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
            ),
            _ => false,
        }
    }
}

/// One thread's tunnels to other proxies.
///
/// - A tunnel carries connections of one key only.
/// - There is one per key, and another only when its streams are used up, when the credentials
///   it was opened with are no longer the current ones, or when it cannot be used any more.
/// - A tunnel that no longer gets connections goes on until its last one has ended.
#[derive(Default)]
pub(crate) struct Pool {
    entries: RefCell<HashMap<TunnelKey, Entry>>,
}

#[derive(Default)]
struct Entry {
    tunnels: Vec<Rc<Tunnel>>,
    opening: Option<watch::Receiver<Option<Result<(), TunnelError>>>>,
}

struct Tunnel {
    requests: SendRequest<Bytes>,
    credentials: Arc<Credentials>,
    /// When the first of the two certificates expires.
    valid_until: SystemTime,
    closed: Cell<bool>,
    active: Cell<usize>,
    /// Stream ids are not used again.
    opened: Cell<u32>,
    last_used: Cell<Instant>,
}

/// Half of the ids that there are.
const STREAMS_EVER: u32 = 1 << 29;

/// A place on a tunnel for one connection.
pub(crate) struct Lease(Rc<Tunnel>);

impl Lease {
    /// Opens a stream.
    pub(crate) fn open(
        &self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.0.opened.set(self.0.opened.get().saturating_add(1));
        let opened = self.0.requests.clone().send_request(request, false);
        if opened.is_err() {
            self.0.closed.set(true);
        }
        opened
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.last_used.set(Instant::now());
    }
}

impl Tunnel {
    fn is_usable(&self, credentials: &Arc<Credentials>) -> bool {
        !self.closed.get()
            && Arc::ptr_eq(&self.credentials, credentials)
            && self.opened.get() < STREAMS_EVER
            && SystemTime::now() < self.valid_until
    }

    fn has_room(&self, limits: &Limits) -> bool {
        let most = self.requests.current_max_send_streams();
        self.active.get() < most.min(limits.streams_per_tunnel as usize)
    }
}

impl Pool {
    /// A place on a tunnel, which is opened from `from` if need be.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        key: &TunnelKey,
        from: Option<IpAddr>,
        credentials: &Arc<Credentials>,
        limits: &Limits,
    ) -> Result<Lease, TunnelError> {
        loop {
            let mut opening = {
                let mut entries = self.entries.borrow_mut();
                if !entries.contains_key(key) {
                    entries.insert(key.clone(), Entry::default());
                }
                let Some(entry) = entries.get_mut(key) else { continue };
                entry.tunnels.retain(|tunnel| tunnel.is_usable(credentials));
                if let Some(tunnel) = entry.tunnels.iter().find(|t| t.has_room(limits)) {
                    tunnel.active.set(tunnel.active.get() + 1);
                    return Ok(Lease(tunnel.clone()));
                }
                // A peer may allow few streams, or none.
                let tunnels = entry.tunnels.len();
                if tunnels >= limits.tunnels_per_key {
                    return Err(TunnelError::Full { to: key.to, tunnels });
                }
                match &entry.opening {
                    Some(opening) => opening.clone(),
                    None => {
                        let opening = self.open(key, from, credentials.clone(), limits.clone());
                        entry.opening = Some(opening.clone());
                        opening
                    }
                }
            };
            match opening.wait_for(Option::is_some).await.map(|result| (*result).clone()) {
                Ok(Some(Err(error))) => return Err(error),
                Ok(_) => {}
                Err(_) => return Err(TunnelError::Timeout { to: key.to }),
            }
        }
    }

    /// Forgets tunnels that were idle for long, or whose credentials are not current any more;
    /// they close when their last connection has ended.
    pub(crate) fn sweep(
        &self,
        limits: &Limits,
        current: impl Fn(&SpiffeId) -> Option<Arc<Credentials>>,
    ) {
        self.entries.borrow_mut().retain(|key, entry| {
            let current = current(&key.source);
            entry.tunnels.retain(|tunnel| {
                let busy = tunnel.active.get() > 0
                    || tunnel.last_used.get().elapsed() < limits.tunnel_idle;
                busy && current.as_ref().is_some_and(|current| tunnel.is_usable(current))
            });
            entry.opening.is_some() || !entry.tunnels.is_empty()
        });
    }

    /// Forgets all tunnels.
    pub(crate) fn close(&self) {
        self.entries.borrow_mut().clear();
    }

    /// Opens a tunnel, whether or not those who wait for it go on waiting.
    fn open(
        self: &Rc<Self>,
        key: &TunnelKey,
        from: Option<IpAddr>,
        credentials: Arc<Credentials>,
        limits: Limits,
    ) -> watch::Receiver<Option<Result<(), TunnelError>>> {
        let (done, opening) = watch::channel(None);
        let (pool, key) = (self.clone(), key.clone());
        tokio::task::spawn_local(async move {
            let result = connect(&key, from, credentials, limits).await;
            if let Err(error) = &result {
                tracing::warn!(
                    source = %key.source, destination = %key.destination, %error, "no tunnel"
                );
            }
            let mut entries = pool.entries.borrow_mut();
            let entry = entries.entry(key).or_default();
            entry.opening = None;
            let result = result.map(|tunnel| entry.tunnels.push(tunnel));
            drop(entries);
            // Nobody waits any more: fine.
            let _ = done.send(Some(result));
        });
        opening
    }
}

/// Opens a tunnel. While the other node's proxy is being replaced that takes several attempts.
async fn connect(
    key: &TunnelKey,
    from: Option<IpAddr>,
    credentials: Arc<Credentials>,
    limits: Limits,
) -> Result<Rc<Tunnel>, TunnelError> {
    const FIRST_RETRY: Duration = Duration::from_millis(20);
    const LAST_RETRY: Duration = Duration::from_millis(320);

    let until = Instant::now() + limits.absence;
    let mut retry = FIRST_RETRY;
    loop {
        let error = match attempt(key, from, credentials.clone(), limits.clone()).await {
            Err(error) if error.may_pass() && Instant::now() + retry < until => error,
            result => return result,
        };
        tracing::debug!(source = %key.source, destination = %key.destination, %error, "no tunnel yet");
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

async fn attempt(
    key: &TunnelKey,
    from: Option<IpAddr>,
    credentials: Arc<Credentials>,
    limits: Limits,
) -> Result<Rc<Tunnel>, TunnelError> {
    let to = key.to;
    let connect = async { listener::socket(to, from)?.connect(to).await };
    let tcp = tokio::time::timeout(limits.connect, connect)
        .await
        .map_err(|_| TunnelError::Timeout { to })?
        .map_err(|error| TunnelError::Connect { to, error: Arc::new(error) })?;
    let handshakes = handshakes(key, tcp, &credentials);
    let (io, requests, connection, valid_until) =
        tokio::time::timeout(limits.handshake, handshakes)
            .await
            .map_err(|_| TunnelError::Timeout { to })??;
    let tunnel = Rc::new(Tunnel {
        requests,
        credentials,
        valid_until,
        closed: Cell::new(false),
        active: Cell::new(0),
        opened: Cell::new(0),
        last_used: Cell::new(Instant::now()),
    });
    tracing::debug!(source = %key.source, destination = %key.destination, %to, "tunnel open");
    let weak = Rc::downgrade(&tunnel);
    let key = key.clone();
    tokio::task::spawn_local(async move {
        let result = drive(connection, io, &weak, &limits).await;
        if let Some(tunnel) = weak.upgrade() {
            tunnel.closed.set(true);
        }
        match result {
            Ok(()) => tracing::debug!(source = %key.source, %to, "tunnel closed"),
            Err(error) => tracing::info!(
                source = %key.source, destination = %key.destination, %to, %error, "tunnel broken"
            ),
        }
    });
    Ok(tunnel)
}

type Connection = h2::client::Connection<Coalesced<ClientTls>, Bytes>;
type Opened = (Coalesced<ClientTls>, SendRequest<Bytes>, Connection, SystemTime);

async fn handshakes(
    key: &TunnelKey,
    tcp: tokio::net::TcpStream,
    credentials: &Credentials,
) -> Result<Opened, TunnelError> {
    let to = key.to;
    let unusable = |error: &dyn std::fmt::Display| {
        TunnelError::Configuration(format!("{}: {error}", key.destination).into())
    };
    let config = credentials.client(key.destination.clone()).map_err(|e| unusable(&e))?;
    let name = ServerName::try_from(key.destination.server_name()).map_err(|e| unusable(&e))?;
    let mut tls = TlsConnector::from(Arc::new(config))
        .connect(name, TunnelSocket::new(tcp))
        .await
        .map_err(|error| TunnelError::Tls { to, error: Arc::new(error) })?;
    let peer = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = peer.ok_or_else(|| unusable(&"no certificate"))?;
    let valid_until = tls::not_after(peer).map_err(|e| unusable(&e))?.min(credentials.not_after);
    tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
    let io = Coalesced::new(tls);
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(StreamWindow::WIDEST)
        .initial_connection_window_size(TUNNEL_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(None)
        .enable_push(false)
        .handshake(io.share())
        .await
        .map_err(|error| TunnelError::Http { to, error: Arc::new(error) })?;
    Ok((io, requests, connection, valid_until))
}

/// Runs a tunnel until it has ended, or the peer no longer answers.
async fn drive(
    mut connection: Connection,
    io: Coalesced<ClientTls>,
    tunnel: &Weak<Tunnel>,
    limits: &Limits,
) -> Result<(), h2::Error> {
    let pings = connection.ping_pong();
    let mut window = StreamWindow::new();
    tokio::select! {
        result = poll_fn(|cx| {
            if let Some(tunnel) = tunnel.upgrade() {
                window.follow(tunnel.active.get(), |size| connection.set_initial_window_size(size));
            }
            poll_driven(cx, &io, |cx| Pin::new(&mut connection).poll(cx), |error| {
                tracing::debug!(%error, "cannot send on a tunnel");
                Err(Reason::CONNECT_ERROR.into())
            })
        }) => result,
        () = unanswered(pings, limits) => Err(Reason::NO_ERROR.into()),
    }
}
