//! Where the authority listens: TLS 1.3, with a certificate that its own root issues.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::{Authority, Subject, new_key};

/// A handshake that takes longer has failed.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections in their handshake at once.
const HANDSHAKES: usize = 512;
/// After a failure it is tried again this much later.
const RETRY: Duration = Duration::from_secs(5);
/// The serving certificate's life.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// The names under which a Service is reached from within the cluster.
pub fn server_names(service: &str, namespace: &str, cluster_domain: &str) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{cluster_domain}"),
        format!("{service}.{namespace}"),
        service.to_owned(),
    ]
}

/// A listener whose certificate is always one of the present authority's.
pub struct Listener {
    listener: TcpListener,
    config: watch::Receiver<Arc<ServerConfig>>,
}

impl Listener {
    /// Listens at `address` as the server with `names`.
    ///
    /// # Errors
    /// Where the address cannot be had, or no certificate.
    pub async fn bind(
        address: SocketAddr,
        names: Vec<String>,
        authority: watch::Receiver<Arc<Authority>>,
    ) -> anyhow::Result<Self> {
        let (config, renew_at) = serving(&authority.borrow(), &names)?;
        let (sender, config) = watch::channel(config);
        tokio::spawn(renew(sender, names, authority, renew_at));
        let listener = match TcpListener::bind(address).await {
            // Not every node has IPv6.
            Err(error)
                if address.ip() == Ipv6Addr::UNSPECIFIED
                    && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
            {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
            }
            bound => bound,
        };
        let listener = listener.with_context(|| format!("--listen {address}"))?;
        Ok(Self { listener, config })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The connections whose handshake is done.
    pub fn incoming(self) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
        let (sender, receiver) = mpsc::channel(16);
        let turns = Arc::new(Semaphore::new(HANDSHAKES));
        tokio::spawn(async move {
            loop {
                let Ok(turn) = turns.clone().acquire_owned().await else { return };
                let accepted = tokio::select! {
                    accepted = self.listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: others must go first.
                        tracing::error!(%error, "accept");
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let acceptor = TlsAcceptor::from(self.config.borrow().clone());
                let sender = sender.clone();
                tokio::spawn(async move {
                    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                        // A probe of the kubelet's ends before it begins.
                        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                        Ok(Err(error)) => tracing::info!(%peer, %error, "no TLS handshake"),
                        Err(_) => tracing::info!(%peer, "no TLS handshake in time"),
                    }
                    drop(turn);
                });
            }
        });
        ReceiverStream::new(receiver)
    }
}

async fn renew(
    config: watch::Sender<Arc<ServerConfig>>,
    names: Vec<String>,
    mut authority: watch::Receiver<Arc<Authority>>,
    mut renew_at: SystemTime,
) {
    loop {
        let wait = renew_at.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            changed = authority.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(wait) => {}
            () = config.closed() => return,
        }
        let now = authority.borrow_and_update().clone();
        match serving(&now, &names) {
            Ok((new, at)) => {
                config.send_replace(new);
                renew_at = at;
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "no new serving certificate");
                renew_at = SystemTime::now() + RETRY;
            }
        }
    }
}

/// What to serve with, and until when.
fn serving(
    authority: &Authority,
    names: &[String],
) -> anyhow::Result<(Arc<ServerConfig>, SystemTime)> {
    let now = SystemTime::now();
    let key = new_key("the serving certificate")?;
    let certified = authority.certify(&Subject::Server(names), &key, now, LIFE)?;
    let chain = certified.chain.into_iter().map(CertificateDer::from).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let half = certified.not_after.duration_since(now).unwrap_or_default() / 2;
    Ok((Arc::new(config), now + half))
}
