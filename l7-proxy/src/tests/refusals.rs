//! Who is refused, on either side.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_common::Origin;
use weft_proto::v1::{self, Update};

use super::support::*;
use crate::Limits;
use crate::identity::SpiffeId;
use crate::tls::Credentials;

/// A pod that answers `hello`.
async fn greeter(mesh: &Mesh) {
    let listener = TcpListener::bind((mesh.server, 8080)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            socket.write_all(b"hello").await.unwrap();
        }
    });
}

async fn greeting(socket: std::io::Result<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut socket = socket?;
    let mut bytes = Vec::new();
    let read = socket.read_to_end(&mut bytes);
    tokio::time::timeout(PATIENCE, read).await.expect("an end")?;
    Ok(bytes)
}

async fn is_reset(socket: std::io::Result<TcpStream>) {
    let result = greeting(socket).await;
    assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

fn credentials(certificate: &v1::Certificate, root: &Authority) -> Credentials {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.der()).unwrap();
    let identity = SpiffeId::parse(&certificate.identity).unwrap();
    Credentials::new(identity, &certificate.chain, &certificate.key, Some(Arc::new(roots))).unwrap()
}

/// A tunnel of the test's own to the second node.
async fn tunnel(
    mesh: &Mesh,
    client: &Credentials,
    destination: &str,
    from: Ipv4Addr,
) -> std::io::Result<h2::client::SendRequest<Bytes>> {
    let destination = SpiffeId::parse(destination).unwrap();
    let name = ServerName::try_from(destination.server_name()).unwrap();
    let config = client.client(destination).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let tcp = socket.connect(mesh.nodes[1].inbound).await?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (requests, connection) = h2::client::handshake(tls).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    requests.ready().await.map_err(std::io::Error::other)
}

/// Whether the second node refuses a client. In TLS 1.3 the client has ended its handshake when
/// the server judges its certificate: it may learn of it only afterwards.
async fn is_refused(mesh: &Mesh, client: &Credentials) -> bool {
    let opened = tunnel(mesh, client, &identity("server"), mesh.nodes[0].address).await;
    let Ok(mut requests) = opened else { return true };
    let target = format!("{}:8080", mesh.server);
    let request = Request::builder().method("CONNECT").uri(target).body(()).unwrap();
    match requests.send_request(request, false) {
        Ok((response, _send)) => response.await.is_err(),
        Err(_) => true,
    }
}

async fn status(
    requests: &h2::client::SendRequest<Bytes>,
    target: SocketAddr,
    source: Option<IpAddr>,
) -> StatusCode {
    let mut request = Request::builder().method("CONNECT").uri(target.to_string());
    if let Some(source) = source {
        request = request.header("forwarded", format!("for=\"{source}:4321\""));
    }
    let mut requests = requests.clone();
    let (response, _send) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    response.await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_needs_the_kernels_record_of_its_own() {
    let mesh = Mesh::new().await;
    greeter(&mesh).await;
    let server = (mesh.server, 8080).into();
    is_reset(TcpStream::connect(mesh.nodes[0].outbound).await).await;
    let record = |source| Origin {
        destination: endpoint(server),
        backend: endpoint(server),
        source: endpoint(source),
        pod: 1,
    };
    // The record is of another port, or of another pod.
    is_reset(mesh.connect_with(|s| record((s.ip(), s.port() ^ 1).into())).await).await;
    is_reset(mesh.connect_with(|s| record((mesh.server, s.port()).into())).await).await;
    assert_eq!(greeting(mesh.connect_with(record).await).await.unwrap(), b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_refuses_resets_the_client() {
    let mesh = Mesh::new().await;
    is_reset(mesh.connect(9).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_prove_the_expected_identity() {
    let mesh = Mesh::new().await;
    // Whoever took over the server's address has a certificate of the mesh, but another one.
    let mallory = credentials(&mesh.authority.issue(&identity("mallory"), HOUR), &mesh.authority);
    let address = Ipv4Addr::from(u32::from(mesh.server) + 1);
    let listener = TcpListener::bind((address, 15008)).await.unwrap();
    let handshake = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(mallory.server).accept(tcp).await.map(|_| ())
    });
    let mut server = workload("server", mesh.server, mesh.nodes[1].address, false);
    server.tunnels = vec![format!("{address}:15008")];
    mesh.nodes[0].agent.send_workload(server);
    until(async || {
        is_reset(mesh.connect(8080).await).await;
        handshake.is_finished()
    })
    .await;
    let error = handshake.await.unwrap().unwrap_err();
    assert!(
        error.to_string().contains("BadCertificate") || error.to_string().contains("alert"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_speaks_only_for_pods_of_its_identity_and_node() {
    let mesh = Mesh::new().await;
    greeter(&mesh).await;
    let [first, second] = &mesh.nodes;
    let (server, client) = ((mesh.server, 8080).into(), Some(IpAddr::V4(mesh.client)));
    let own = credentials(&mesh.authority.issue(&identity("client"), HOUR), &mesh.authority);
    let to_server = identity("server");

    let honest = tunnel(&mesh, &own, &to_server, first.address).await.unwrap();
    assert_eq!(status(&honest, server, client).await, StatusCode::OK);
    // A pod that is nobody, or somebody else.
    let nobody = Some(IpAddr::from([10, 9, 8, 7]));
    assert_eq!(status(&honest, server, nobody).await, StatusCode::FORBIDDEN);
    let itself = Some(IpAddr::V4(mesh.server));
    assert_eq!(status(&honest, server, itself).await, StatusCode::FORBIDDEN);
    assert_eq!(status(&honest, server, None).await, StatusCode::FORBIDDEN);
    // A target that is not on this node.
    let elsewhere = (mesh.client, 8080).into();
    assert_eq!(status(&honest, elsewhere, client).await, StatusCode::FORBIDDEN);

    // The pod's node is another.
    let astray = tunnel(&mesh, &own, &to_server, second.address).await.unwrap();
    assert_eq!(status(&astray, server, client).await, StatusCode::FORBIDDEN);
    // Another identity speaks for the pod.
    let mallory = credentials(&mesh.authority.issue(&identity("mallory"), HOUR), &mesh.authority);
    let stolen = tunnel(&mesh, &mallory, &to_server, first.address).await.unwrap();
    assert_eq!(status(&stolen, server, client).await, StatusCode::FORBIDDEN);

    // A tunnel that was opened to another identity of the node.
    let other = Ipv4Addr::from(u32::from(mesh.server) + 1);
    second.agent.send(Update {
        workloads: vec![workload("other", other, second.address, true)],
        certificates: vec![mesh.authority.issue(&identity("other"), HOUR)],
        ..Update::default()
    });
    let beside = tunnel(&mesh, &own, &identity("other"), first.address).await.unwrap();
    assert_eq!(status(&beside, server, client).await, StatusCode::FORBIDDEN);
    // No pod of this identity is on the node.
    assert!(tunnel(&mesh, &own, &identity("nobody"), first.address).await.is_err());
    // Of all these, the kernel has heard only of the first.
    assert_eq!(second.records.sources.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_certificates_are_refused() {
    let past = -time::Duration::minutes(1);
    let mesh = Mesh::new().await;
    greeter(&mesh).await;
    let expired = credentials(&mesh.authority.issue(&identity("client"), past), &mesh.authority);
    assert!(is_refused(&mesh, &expired).await, "the server takes an expired client");

    mesh.nodes[1].agent.send_certificate(mesh.authority.issue(&identity("server"), past));
    // The new certificate is in force once no thread of the proxy shows the old one: which thread
    // takes a connection is the kernel's choice.
    until(async || {
        for _ in 0..16 {
            if greeting(mesh.connect(8080).await).await.is_ok() {
                return false;
            }
        }
        true
    })
    .await;
    is_reset(mesh.connect(8080).await).await;
    mesh.nodes[1].agent.send_certificate(mesh.authority.issue(&identity("server"), HOUR));
    until(async || greeting(mesh.connect(8080).await).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_trust_root_is_refused() {
    let other = Authority::new();
    let mesh = Mesh::with_roots(Limits::default(), Authority::new(), Some(&other)).await;
    greeter(&mesh).await;
    is_reset(mesh.connect(8080).await).await;
    // The client would believe this server; the server does not believe the client.
    let client = credentials(&mesh.authority.issue(&identity("client"), HOUR), &other);
    assert!(is_refused(&mesh, &client).await, "the server takes a client of another root");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_certificate_is_refused() {
    let mesh = Mesh::new().await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(mesh.authority.der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    // So that it gets to the server's verdict, the client must not mind the server's name.
    let own = credentials(&mesh.authority.issue(&identity("client"), HOUR), &mesh.authority);
    let server = SpiffeId::parse(&identity("server")).unwrap();
    let name = ServerName::try_from(server.server_name()).unwrap();
    let verifier = own.verifier(server);
    config.dangerous().set_certificate_verifier(Arc::new(verifier));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(mesh.nodes[1].inbound).await.unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let mut bytes = Vec::new();
    let error = tls.read_to_end(&mut bytes).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_goes_takes_no_connection_with_it() {
    let mesh = Mesh::new().await;
    let listener = TcpListener::bind((mesh.server, 8080)).await.unwrap();
    let mut open = mesh.connect(8080).await.unwrap();
    open.write_all(b"before").await.unwrap();
    let (mut served, _) = listener.accept().await.unwrap();
    mesh.nodes[0]
        .agent
        .send(Update { removed_certificates: vec![identity("client")], ..Update::default() });
    // New connections are refused, the one that was open goes on.
    until(async || {
        let Ok(mut socket) = mesh.connect(8080).await else { return true };
        let mut byte = [0; 1];
        let read = socket.read(&mut byte);
        let limit = std::time::Duration::from_millis(1500);
        matches!(tokio::time::timeout(limit, read).await, Ok(Err(_)))
    })
    .await;
    open.write_all(b" after").await.unwrap();
    open.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    served.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"before after");
}
