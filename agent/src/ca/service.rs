//! The gRPC services of the authority: who may have which certificate, and a line in the log for
//! each that was asked for.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use rcgen::SubjectPublicKeyInfo;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use weft_proto::istio::istio_certificate_service_server::IstioCertificateService;
use weft_proto::istio::{IstioCertificateRequest, IstioCertificateResponse};
use weft_proto::v1::certificate_authority_server::CertificateAuthority;
use weft_proto::v1::{IssueRequest, IssueResponse, TrustBundle, WatchTrustBundleRequest};

use super::caller::{Caller, Refusal, ServiceAccount, identify};
use super::pods::{Found, Pods};
use super::root::CurrentRoot;
use super::{Certified, Subject, material, request};
use crate::conditions::Nodes;
use crate::identity::SpiffeId;

/// Key of the request's metadata in which a node's proxy names the workload (Istio).
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// Characters of an identity in the log.
const LONGEST_LOGGED: usize = 512;
/// Tokens that are reviewed at once: the API server is to be spared.
const REVIEWS: usize = 64;

/// Who may ask for what.
#[derive(Clone, Debug)]
pub struct Rules {
    /// SPIFFE trust domain of everything that is issued.
    pub trust_domain: String,
    /// Accounts of Weft's agents.
    pub agents: Vec<ServiceAccount>,
    /// The audience of their tokens.
    pub audience: String,
    /// Accounts of other meshes' node proxies (ztunnel), by Istio's service.
    pub node_proxies: Vec<ServiceAccount>,
    /// The audience of tokens for Istio's service, beside the agents'.
    pub istio_audience: String,
    /// Whether a pod may have a certificate for itself by Istio's service.
    pub own_certificates: bool,
    /// The longest life of a certificate.
    pub longest: Duration,
}

/// The services.
#[derive(Clone)]
pub struct CaService {
    client: Client,
    rules: Arc<Rules>,
    root: CurrentRoot,
    pods: Pods,
    reviews: Arc<Semaphore>,
}

/// What was asked for, as far as it was understood.
#[derive(Debug, Default)]
struct Asked {
    service: &'static str,
    caller: Option<Caller>,
    node: Option<String>,
    identity: String,
    /// The caller asks for its own account's.
    own: bool,
}

impl CaService {
    /// Issues from `root` by `rules`.
    pub fn new(client: Client, rules: Rules, root: CurrentRoot, pods: Pods) -> Self {
        let reviews = Arc::new(Semaphore::new(REVIEWS));
        Self { client, rules: Arc::new(rules), root, pods, reviews }
    }

    async fn caller(
        &self,
        metadata: &MetadataMap,
        audiences: &[String],
    ) -> Result<Caller, Refusal> {
        let token = bearer(metadata)?;
        let _turn = self.reviews.acquire().await;
        identify(&self.client, token, audiences).await
    }

    async fn issue_to_agent(
        &self,
        metadata: &MetadataMap,
        request: &IssueRequest,
        asked: &mut Asked,
    ) -> Result<Certified, Refusal> {
        asked.identity = shortened(&request.identity);
        let audiences = [self.rules.audience.clone()];
        let caller = &*asked.caller.insert(self.caller(metadata, &audiences).await?);
        check_account(caller, &self.rules.agents, "--agent-account")?;
        let identity = SpiffeId::read(&request.identity)
            .map_err(|error| Refusal::invalid(format!("identity: {error}")))?;
        let key = request::public_key(&request.csr).map_err(Refusal::invalid)?;
        let node = asked.node.insert(self.pods.node_of(caller).await?);
        self.check_node(node, &identity).await?;
        self.sign(&identity, &key, Duration::from_secs(request.life_seconds.into()))
    }

    async fn issue_to_istio(
        &self,
        metadata: &MetadataMap,
        request: &IstioCertificateRequest,
        asked: &mut Asked,
    ) -> Result<Certified, Refusal> {
        let impersonated = impersonated(request);
        asked.identity = shortened(impersonated.unwrap_or_default());
        let audiences = [self.rules.audience.clone(), self.rules.istio_audience.clone()];
        let caller = &*asked.caller.insert(self.caller(metadata, &audiences).await?);
        let key = request::public_key_of_pem(&request.csr).map_err(Refusal::invalid)?;
        let identity = match impersonated {
            Some(identity) => {
                let proxies = [&*self.rules.agents, &*self.rules.node_proxies].concat();
                check_account(caller, &proxies, "--node-proxy-account")?;
                let identity = SpiffeId::read(identity)
                    .map_err(|error| Refusal::invalid(format!("{IMPERSONATED}: {error}")))?;
                let node = asked.node.insert(self.pods.node_of(caller).await?);
                self.check_node(node, &identity).await?;
                identity
            }
            None => {
                let ServiceAccount { namespace, name } = &caller.account;
                let identity = SpiffeId::new(&self.rules.trust_domain, namespace, name);
                asked.identity = identity.to_string();
                asked.own = true;
                if !self.rules.own_certificates {
                    return Err(Refusal::denied(
                        "pods do not get certificates for themselves here: `weft ca \
                         --own-certificates` would give them, and node proxies name a workload in \
                         the metadata ImpersonatedIdentity",
                    ));
                }
                asked.node = Some(self.pods.node_of(caller).await?);
                identity
            }
        };
        let life = u64::try_from(request.validity_duration).unwrap_or(0);
        self.sign(&identity, &key, Duration::from_secs(life))
    }

    /// A node gets certificates only for accounts that have a pod on it.
    async fn check_node(&self, node: &str, identity: &SpiffeId) -> Result<(), Refusal> {
        let Some((trust_domain, namespace, account)) = identity.parts() else {
            return Err(Refusal::invalid(format!("{identity} is no service account's")));
        };
        if trust_domain != self.rules.trust_domain {
            return Err(Refusal::denied(format!(
                "{identity} is of trust domain {trust_domain}, and this authority of {}: give \
                 agents and authority the same --trust-domain",
                self.rules.trust_domain
            )));
        }
        let account = ServiceAccount { namespace: namespace.to_owned(), name: account.to_owned() };
        match self.pods.has(node, &account).await? {
            Found::Known | Found::Asked => Ok(()),
            Found::Nowhere => Err(Refusal::denied(format!(
                "the service account {account} has no pod on the node {node}: a node gets \
                 certificates only for accounts with a pod that runs on it"
            ))),
        }
    }

    fn sign(
        &self,
        identity: &SpiffeId,
        key: &SubjectPublicKeyInfo,
        wanted: Duration,
    ) -> Result<Certified, Refusal> {
        let authority = self.root.authority.borrow().clone();
        let life = if wanted.is_zero() { authority.life() } else { wanted };
        let subject = Subject::Workload(identity);
        authority
            .certify(&subject, key, SystemTime::now(), life.min(self.rules.longest))
            .map_err(|error| Refusal::unavailable(error.to_string()))
    }
}

/// What anybody may send goes into the log only so far.
fn shortened(identity: &str) -> String {
    identity.chars().take(LONGEST_LOGGED).collect()
}

/// The line in the log.
fn report(asked: &Asked, result: &Result<Certified, Refusal>) {
    let Asked { service, caller, node, identity, own } = asked;
    let account = caller.as_ref().map(|caller| caller.account.to_string());
    let pod = caller
        .as_ref()
        .map(|caller| format!("{}/{} ({})", caller.account.namespace, caller.pod, caller.pod_uid));
    match result {
        Ok(issued) => {
            let until = OffsetDateTime::from(issued.not_after);
            let why = match node.as_deref() {
                Some(node) if !own => {
                    format!("{identity} has a pod on {node}, the node of the caller's pod")
                }
                _ => "it is the caller's own".to_owned(),
            };
            tracing::info!(
                service, identity, account, pod, node, serial = issued.serial, %until, why,
                "issued a certificate",
            );
        }
        Err(refusal) => tracing::warn!(
            service, identity, account, pod, node, code = ?refusal.code, reason = refusal.reason,
            "refused a certificate",
        ),
    }
}

#[tonic::async_trait]
impl Nodes for CaService {
    async fn node(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let caller = self.caller(metadata, std::slice::from_ref(&self.rules.audience)).await?;
        check_account(&caller, &self.rules.agents, "--agent-account")?;
        Ok(self.pods.node_of(&caller).await?)
    }
}

fn check_account(
    caller: &Caller,
    allowed: &[ServiceAccount],
    setting: &str,
) -> Result<(), Refusal> {
    if allowed.contains(&caller.account) {
        return Ok(());
    }
    Err(Refusal::denied(format!(
        "the service account {} may not ask for workloads' certificates: if it should, name it to \
         `weft ca` with {setting}",
        caller.account
    )))
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Refusal> {
    let missing = || {
        Refusal::unauthenticated(
            "no bearer token: send the service account token in the metadata `authorization: \
             Bearer ...`",
        )
    };
    let value = metadata.get("authorization").ok_or_else(missing)?;
    let value = value.to_str().map_err(|_| missing())?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(missing());
    }
    Ok(token)
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    let value = request.metadata.as_ref()?.fields.get(IMPERSONATED)?;
    match value.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

type BundleStream = Pin<Box<dyn Stream<Item = Result<TrustBundle, Status>> + Send>>;

#[tonic::async_trait]
impl CertificateAuthority for CaService {
    type WatchTrustBundleStream = BundleStream;

    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let mut asked = Asked { service: "weft", ..Asked::default() };
        let result = self.issue_to_agent(&metadata, &request, &mut asked).await;
        report(&asked, &result);
        Ok(Response::new(IssueResponse { chain: result?.chain }))
    }

    async fn watch_trust_bundle(
        &self,
        request: Request<WatchTrustBundleRequest>,
    ) -> Result<Response<BundleStream>, Status> {
        let audiences = [self.rules.audience.clone()];
        let caller = self
            .caller(request.metadata(), &audiences)
            .await
            .inspect_err(|refusal| tracing::warn!(reason = refusal.reason, "refused a watch"))?;
        tracing::debug!(account = %caller.account, pod = caller.pod, "watches the trust bundle");
        let bundles = WatchStream::new(self.root.bundle.clone())
            .map(|bundle| Ok(TrustBundle { roots: bundle.as_bytes().to_vec() }));
        Ok(Response::new(Box::pin(bundles)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let mut asked = Asked { service: "istio", ..Asked::default() };
        let result = self.issue_to_istio(&metadata, &request, &mut asked).await;
        report(&asked, &result);
        let mut cert_chain: Vec<String> =
            result?.chain.iter().map(|der| material::pem_of(der)).collect();
        // Istio's clients take the last one for the root, and have room for only one.
        let authority = self.root.authority.borrow().clone();
        cert_chain.push(material::pem_of(authority.root()));
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
