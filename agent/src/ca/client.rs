//! The agent's side of `weft ca`: asks for certificates, and follows the trusted roots.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};
use weft_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use weft_proto::v1::{IssueRequest, WatchTrustBundleRequest};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::channel::{self, CaAddress, Services, Trusted};
use super::{CaError, WorkloadCertificate, material, new_key, request};
use crate::identity::SpiffeId;

const REQUEST: Duration = Duration::from_secs(10);
/// The roots' file is looked at this often while the authority does not answer.
const LOOK: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Up to twice this, with jitter.
const LAST_RETRY: Duration = Duration::from_secs(8);

/// The authority, as an agent knows it.
#[derive(Clone)]
pub struct CaClient {
    address: Arc<CaAddress>,
    services: Services,
    channel: Channel,
    roots: Arc<Trusted>,
}

impl CaClient {
    /// Connects when it is first needed.
    ///
    /// # Errors
    /// Where the address is malformed.
    pub fn new(address: CaAddress, services: Services) -> anyhow::Result<Self> {
        let (channel, roots) = channel::open(&address, services.clone())?;
        Ok(Self { address: Arc::new(address), services, channel, roots })
    }

    /// A connection of its own, to the next of the replicas.
    ///
    /// # Errors
    /// Where the address is malformed.
    pub fn new_connection(&self) -> anyhow::Result<Channel> {
        Ok(channel::open(&self.address, self.services.clone())?.0)
    }

    /// The trusted roots in PEM, as they change; empty while none is known.
    pub fn roots(&self) -> watch::Receiver<Arc<str>> {
        self.roots.roots.subscribe()
    }

    /// Changes whenever the authority was reached after it was not.
    pub fn reached(&self) -> watch::Receiver<u64> {
        self.roots.reached.subscribe()
    }

    /// The connection, for other services at the same address.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A certificate for a new key.
    ///
    /// # Errors
    /// Where the authority refuses, or is away, or answers with something else.
    pub async fn issue(&self, identity: &SpiffeId) -> Result<WorkloadCertificate, CaError> {
        let key = new_key(identity.as_str())?;
        let request = IssueRequest {
            identity: identity.to_string(),
            csr: request::write(identity, &key)?,
            life_seconds: u32::try_from(self.address.life.as_secs()).unwrap_or(u32::MAX),
        };
        let mut request = self.authorized(request)?;
        request.set_timeout(REQUEST);
        let mut client = CertificateAuthorityClient::new(self.channel.clone());
        let chain = match tokio::time::timeout(REQUEST, client.issue(request)).await {
            Ok(answer) => answer.map_err(|status| self.refused(&status))?.into_inner().chain,
            Err(_) => {
                return Err(CaError::Refused(format!(
                    "{} did not answer within {} s",
                    self.address.address,
                    REQUEST.as_secs()
                )));
            }
        };
        let now = SystemTime::now();
        let not_after = check(&chain, identity, &key)
            .map_err(|error| CaError::Refused(format!("{}: {error}", self.address.address)))?;
        let life = not_after.duration_since(now).unwrap_or_default();
        Ok(WorkloadCertificate {
            identity: identity.clone(),
            chain,
            key: key.serialize_der(),
            not_after,
            renew_at: now + life / 2,
        })
    }

    /// Follows what the authority says about the roots, for ever.
    pub async fn follow_roots(self) {
        let backoff = ExponentialBuilder::new()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .without_max_times()
            .with_jitter();
        let mut delays = backoff.build();
        let mut reported = String::new();
        loop {
            let mut reached = false;
            let ended = match self.watch(&mut reached).await {
                Ok(()) => "it ended the stream".to_owned(),
                Err(error) => error.to_string(),
            };
            if reached {
                delays = backoff.build();
            }
            if reached || ended != reported {
                tracing::warn!(
                    address = %self.address.address, reason = ended,
                    "the certificate authority is away; certificates stay in use until they end",
                );
            }
            reported = ended;
            let until = Instant::now() + delays.next().unwrap_or(LAST_RETRY);
            loop {
                self.roots.look(&self.address.roots);
                let wait = until.saturating_duration_since(Instant::now());
                if wait.is_zero() {
                    break;
                }
                sleep(wait.min(LOOK)).await;
            }
        }
    }

    async fn watch(&self, reached: &mut bool) -> Result<(), CaError> {
        let mut client = CertificateAuthorityClient::new(self.channel.clone());
        let request = self.authorized(WatchTrustBundleRequest {})?;
        let mut bundles = tokio::time::timeout(REQUEST, client.watch_trust_bundle(request))
            .await
            .map_err(|_| CaError::Refused("it does not answer".to_owned()))?
            .map_err(|status| self.refused(&status))?
            .into_inner();
        while let Some(bundle) = bundles.message().await.map_err(|status| self.refused(&status))? {
            let pem = String::from_utf8_lossy(&bundle.roots).into_owned();
            let roots = material::certificates(pem.as_bytes())
                .map_err(|error| CaError::Refused(format!("its trusted roots: {error}")))?;
            self.roots.set(pem.into());
            if !*reached {
                *reached = true;
                tracing::info!(
                    address = %self.address.address, roots = roots.len(),
                    "the certificate authority answers",
                );
                self.roots.reached.send_modify(|count| *count += 1);
            }
        }
        Ok(())
    }

    /// A request with this agent's token.
    ///
    /// # Errors
    /// Where there is no token.
    pub fn authorized<T>(&self, message: T) -> Result<Request<T>, CaError> {
        let path = &self.address.token;
        let token = fs::read_to_string(path).map_err(|source| CaError::Io {
            action: "read the token",
            path: path.clone(),
            source,
        })?;
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| CaError::Malformed {
                path: path.clone(),
                reason: "holds no token".to_owned(),
            })?;
        value.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }

    fn refused(&self, status: &Status) -> CaError {
        let address = &self.address.address;
        // What stands between repeats the cause.
        let mut cause: &dyn std::error::Error = status;
        while let Some(next) = cause.source() {
            cause = next;
        }
        let cause = cause.to_string();
        let reason = match status.message() {
            "" => cause,
            message if message.contains(&cause) => message.to_owned(),
            message if std::error::Error::source(status).is_none() => message.to_owned(),
            message => format!("{message}: {cause}"),
        };
        CaError::Refused(format!("{address}: {} ({:?})", reason, status.code()))
    }
}

/// Whether a chain begins with a certificate for `identity` and `key`, and when it ends.
fn check(
    chain: &[Vec<u8>],
    identity: &SpiffeId,
    key: &rcgen::KeyPair,
) -> Result<SystemTime, String> {
    let leaf = chain.first().ok_or("it sent no certificate")?;
    let (_, certificate) = X509Certificate::from_der(leaf)
        .map_err(|error| format!("it sent no certificate: {error}"))?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("its certificate is not for the key that was asked about".to_owned());
    }
    let named = certificate.iter_extensions().any(|extension| {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return false;
        };
        names.general_names.as_slice() == [GeneralName::URI(identity.as_str())]
    });
    if !named {
        return Err(format!("its certificate is not for {identity}"));
    }
    let mut earliest = material::not_after(leaf)?;
    for above in chain {
        earliest = earliest.min(material::not_after(above)?);
    }
    Ok(earliest)
}
