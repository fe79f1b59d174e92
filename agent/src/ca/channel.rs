//! The connection to the authority: TLS by roots that change while the agent runs, to the Service's
//! endpoints as the agent knows them, or wherever the name leads.

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use weft_model::mesh::{Mesh, Name, Protocol};

use super::material;

/// For the whole connection, and for the answer of one endpoint.
const CONNECT: Duration = Duration::from_secs(10);
const ENDPOINT: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(5);

/// Connections that were opened: each begins with another endpoint.
static OPENED: AtomicUsize = AtomicUsize::new(0);

/// Endpoints of a Service's port, by host name and port; none where they are not known.
pub type Services = Arc<dyn Fn(&str, u16) -> Vec<SocketAddr> + Send + Sync>;

/// Where the authority is, and what proves the one to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaAddress {
    /// `https://host:port`
    pub address: Uri,
    /// The name in its certificate, where it is not that of the address.
    pub server_name: Option<String>,
    /// The service account token's file.
    pub token: PathBuf,
    /// The file with the roots, in PEM.
    pub roots: PathBuf,
    /// The wanted life of certificates.
    pub life: Duration,
}

/// What is trusted, and whence it comes.
pub(super) struct Trusted {
    /// PEM; the file's, until the authority has said more.
    pub(super) roots: watch::Sender<Arc<str>>,
    /// How often the authority's word about the roots began to come.
    pub(super) reached: watch::Sender<u64>,
    /// What the file held when it was last looked at.
    file: Mutex<Arc<str>>,
}

/// The endpoints of the Service that a host name of the cluster names
/// (`NAME.NAMESPACE.svc`, with or without the cluster's domain).
pub fn endpoints(mesh: &Mesh, host: &str, port: u16) -> Vec<SocketAddr> {
    let mut labels = host.split('.');
    let (Some(name), Some(namespace), Some("svc")) = (labels.next(), labels.next(), labels.next())
    else {
        return Vec::new();
    };
    let Some(service) = mesh.services.get(&Name { namespace: namespace.into(), name: name.into() })
    else {
        return Vec::new();
    };
    let port =
        service.ports.iter().find(|known| known.port == port && known.protocol == Protocol::Tcp);
    port.map(|port| mesh.endpoints(service, port)).unwrap_or_default()
}

/// A connection that is made when it is first needed, and again.
pub(super) fn open(
    address: &CaAddress,
    services: Services,
) -> anyhow::Result<(Channel, Arc<Trusted>)> {
    let uri = &address.address;
    let host = uri.host().context("it has no host")?.to_owned();
    let port = uri.port_u16().context("it has no port")?;
    anyhow::ensure!(
        uri.scheme_str() == Some("https"),
        "{uri} is not of the form https://HOST:PORT"
    );
    let bare: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
    let name = address.server_name.clone().unwrap_or_else(|| bare.to_string());
    let name =
        ServerName::try_from(name.clone()).with_context(|| format!("{name:?} names no server"))?;
    let trusted = Arc::new(Trusted {
        roots: watch::Sender::new("".into()),
        reached: watch::Sender::new(0),
        file: Mutex::new("".into()),
    });
    trusted.look(&address.roots);

    // TLS is ours, for the roots change. tonic sees a plain connection.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))
        .context("the address")?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_ANSWER)
        .keep_alive_while_idle(true);
    let (file, known) = (address.roots.clone(), trusted.clone());
    let opened = OPENED.fetch_add(1, Ordering::Relaxed);
    let turn = Arc::new(AtomicUsize::new(opened.wrapping_add(std::process::id() as usize)));
    let connector = tower::service_fn(move |_: Uri| {
        let (file, known, services) = (file.clone(), known.clone(), services.clone());
        let (host, name, turn) = (bare.clone(), name.clone(), turn.clone());
        async move {
            known.look(&file);
            let tls = TlsConnector::from(Arc::new(known.config(&file)?));
            let mut endpoints = services(&host, port);
            if !endpoints.is_empty() {
                // Agents spread over the replicas, and after a failure it is another's turn.
                let first = turn.fetch_add(1, Ordering::Relaxed) % endpoints.len();
                endpoints.rotate_left(first);
            }
            let stream = connect(&host, port, &endpoints, &tls, name).await?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok((endpoint.connect_with_connector_lazy(connector), trusted))
}

async fn connect(
    host: &str,
    port: u16,
    endpoints: &[SocketAddr],
    tls: &TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    for endpoint in endpoints {
        match timeout(ENDPOINT, secure(TcpStream::connect(endpoint), tls, name.clone())).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => tracing::debug!(%endpoint, %error, "no connection"),
            Err(_) => tracing::debug!(%endpoint, "no connection in time"),
        }
    }
    secure(TcpStream::connect((host, port)), tls, name).await
}

async fn secure(
    connecting: impl Future<Output = io::Result<TcpStream>>,
    tls: &TlsConnector,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = connecting.await?;
    stream.set_nodelay(true)?;
    tls.connect(name, stream).await
}

impl Trusted {
    /// Takes over the file's content where it has changed.
    pub(super) fn look(&self, path: &Path) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                if self.roots.borrow().is_empty() {
                    tracing::warn!(path = %path.display(), %error, "no trusted roots yet");
                }
                return;
            }
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if **file == *text {
            return;
        }
        *file = text.as_str().into();
        match material::certificates(text.as_bytes()) {
            Ok(_) => self.set(text.into()),
            Err(error) => tracing::error!(path = %path.display(), error, "left out"),
        }
    }

    /// Takes over what the authority says, or the file.
    pub(super) fn set(&self, pem: Arc<str>) {
        self.roots.send_if_modified(|known| {
            let changed = *known != pem;
            *known = pem;
            changed
        });
    }

    fn config(&self, file: &Path) -> io::Result<ClientConfig> {
        let pem = self.roots.borrow().clone();
        if pem.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no trusted roots are known: {} has none (yet)", file.display()),
            ));
        }
        let mut roots = RootCertStore::empty();
        for certificate in material::certificates(pem.as_bytes()).map_err(io::Error::other)? {
            roots.add(CertificateDer::from(certificate)).map_err(io::Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}
