//! TLS of the tunnels: 1.3 only, both sides with certificates, peers known by their SPIFFE id.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{InvalidIdentity, SpiffeId};

/// AES-128 first, for it costs less than AES-256; X25519MLKEM768 is the first key exchange.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
});

/// What a workload's certificate lets the proxy do: be the client, and the server, of its tunnels.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) identity: SpiffeId,
    /// When the certificate expires.
    pub(crate) not_after: SystemTime,
    /// Of the server side of tunnels.
    pub(crate) server: Arc<ServerConfig>,
    certificate: Arc<SingleCertAndKey>,
    roots: Arc<RootCertStore>,
}

/// Why a certificate of the agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    #[error("it is for {0}")]
    Other(SpiffeId),
    #[error("it has no certificate")]
    Empty,
    #[error("there is no trust root yet")]
    NoRoots,
    #[error("{0}")]
    Tls(#[from] Error),
    #[error("{0}")]
    Roots(#[from] rustls::server::VerifierBuilderError),
}

impl Credentials {
    /// From a chain (DER, leaf first) and a key (PKCS #8, DER).
    pub(crate) fn new(
        identity: SpiffeId,
        chain: &[Vec<u8>],
        key: &[u8],
        roots: Option<Arc<RootCertStore>>,
    ) -> Result<Self, Unusable> {
        let roots = roots.ok_or(Unusable::NoRoots)?;
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let leaf = chain.first().ok_or(Unusable::Empty)?;
        let proven = SpiffeId::of(leaf)?;
        if proven != identity {
            return Err(Unusable::Other(proven));
        }
        let not_after = not_after(leaf)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let key = CertifiedKey::from_der(chain, key, &PROVIDER)?;
        let certificate = Arc::new(SingleCertAndKey::from(key));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), PROVIDER.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(ClientVerifier { inner: verifier }))
            .with_cert_resolver(certificate.clone());
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would carry a chain that was verified earlier, past its expiry or
        // the removal of its root; and tunnels are too few for resumption to be worth anything.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { identity, not_after, server: Arc::new(server), certificate, roots })
    }

    pub(crate) fn verifier(&self, expected: SpiffeId) -> ServerVerifier {
        ServerVerifier { expected, roots: self.roots.clone() }
    }

    /// Of the client side of a tunnel to `destination`.
    pub(crate) fn client(&self, destination: SpiffeId) -> Result<ClientConfig, Error> {
        let verifier = self.verifier(destination);
        let mut client = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.certificate.clone());
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.resumption = Resumption::disabled();
        Ok(client)
    }
}

/// Does once what a thread's first handshake would have to do (AWS-LC gathers entropy for each
/// thread), so that the first connection does not wait for it.
pub(crate) fn warm_up() {
    for group in &PROVIDER.kx_groups {
        if let Err(error) = group.start() {
            tracing::warn!(group = ?group.name(), %error, "no key exchange");
        }
    }
}

/// When a certificate expires.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, InvalidIdentity> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| InvalidIdentity::Certificate(error.to_string()))?;
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// A peer that proved to be someone else.
#[derive(Debug, thiserror::Error)]
#[error("the peer is {actual}, not {expected}")]
struct Unexpected {
    expected: SpiffeId,
    actual: SpiffeId,
}

fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The part that the verifiers of servers and of clients have in common: two traits, the same
/// methods.
macro_rules! only_tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _certificate: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &PROVIDER.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signature, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            PROVIDER.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Accepts the server whose certificate chains to a trust root, is valid now, and is for exactly
/// the expected identity. Names of hosts play no part.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    expected: SpiffeId,
    roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = PROVIDER.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let actual = SpiffeId::of(end_entity).map_err(refuse)?;
        if actual != self.expected {
            return Err(refuse(Unexpected { expected: self.expected.clone(), actual }));
        }
        Ok(ServerCertVerified::assertion())
    }

    only_tls13_signatures!();
}

/// Accepts clients whose certificate chains to a trust root, is valid now, and has one identity.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        SpiffeId::of(end_entity).map_err(refuse)?;
        Ok(verified)
    }

    only_tls13_signatures!();
}
