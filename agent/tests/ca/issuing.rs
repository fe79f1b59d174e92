//! Who gets which certificate.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use tokio::sync::watch;
use tonic::Request;
use weft_agent::ca::{Issued, Source, WorkloadCertificates, material, new_key, request};
use weft_agent::identity::SpiffeId;
use weft_proto::istio::IstioCertificateRequest;
use weft_proto::istio::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_tests::eventually_async;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fixture::{AUDIENCE, Agent, Fixture, Shared, field, uid};

const HOUR: Duration = Duration::from_secs(3600);

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials([
        ("certificates_are_for_accounts_with_a_pod_on_the_callers_node", |fixture| {
            Box::pin(by_node(fixture))
        }),
        ("a_token_that_proves_no_agent_is_refused", |fixture| Box::pin(tokens(fixture))),
        ("while_the_authority_is_away_certificates_stay_until_they_end", |fixture| {
            Box::pin(away(fixture))
        }),
        ("other_meshes_ask_by_istios_protocol", |fixture| Box::pin(istio(fixture))),
    ])
}

fn identity(fixture: &Fixture, account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", &fixture.shop, account)
}

async fn refused(agent: &Agent, identity: &SpiffeId) -> Result<String> {
    match agent.client.issue(identity).await {
        Ok(_) => bail!("{identity} was issued"),
        Err(error) => Ok(error.to_string()),
    }
}

async fn by_node(fixture: &Fixture) -> Result<()> {
    let authority = fixture.authority("ca", &[]).await?;
    let agent = fixture.agent(&authority, HOUR).await?;
    let (web, db) = (identity(fixture, "web"), identity(fixture, "db"));

    let issued = agent.client.issue(&web).await?;
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0])?;
    let roots = material::certificates(agent.client.roots().borrow().as_bytes())
        .map_err(anyhow::Error::msg)?;
    let (_, root) = X509Certificate::from_der(&roots[0])?;
    leaf.verify_signature(Some(root.public_key()))?;
    ensure!(issued.not_after <= SystemTime::now() + HOUR);
    let line = authority.about(web.as_str())?;
    let agent_uid = uid(fixture, &fixture.system, "agent-a").await?;
    ensure!(field(&line, "message") == "issued a certificate", "{line:?}");
    ensure!(field(&line, "pod") == format!("{}/agent-a ({agent_uid})", fixture.system), "{line:?}");
    ensure!(field(&line, "node") == "node-a" && !field(&line, "why").is_empty(), "{line:?}");

    // A pod of node-b, and one of no node.
    for account in ["db", "nobody"] {
        let id = identity(fixture, account);
        let error = refused(&agent, &id).await?;
        ensure!(error.contains("has no pod on the node node-a"), "{error}");
        ensure!(error.contains("PermissionDenied"), "{error}");
        let line = authority.about(id.as_str())?;
        ensure!(field(&line, "message") == "refused a certificate", "{line:?}");
        ensure!(field(&line, "account") == format!("{}/weft-agent", fixture.system), "{line:?}");
        ensure!(field(&line, "node") == "node-a", "{line:?}");
    }
    let error = refused(&agent, &SpiffeId::new("other.test", &fixture.shop, "web")).await?;
    ensure!(error.contains("--trust-domain"), "{error}");

    // A pod of this very moment is no reason to refuse.
    for round in 0..10 {
        let name = format!("db-{round}");
        fixture.pod(&fixture.shop, &name, "db", "node-a").await?;
        agent.client.issue(&db).await?;
        fixture.remove_pod(&fixture.shop, &name).await?;
        eventually_async("the pod to be forgotten", async || {
            Ok(agent.client.issue(&db).await.is_err().then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn tokens(fixture: &Fixture) -> Result<()> {
    let authority = fixture.authority("ca", &[]).await?;
    let agent = fixture.agent(&authority, HOUR).await?;
    let web = identity(fixture, "web");
    let good = fs::read_to_string(&agent.token)?;
    let (system, shop) = (&fixture.system, &fixture.shop);
    let bound = Some("agent-a");

    let cases = [
        (
            fixture.objects.token(system, "weft-agent", Some("other"), bound).await?,
            "Unauthenticated",
            "audience",
        ),
        (
            fixture.objects.token(system, "weft-agent", None, bound).await?,
            "Unauthenticated",
            "audience",
        ),
        (
            fixture.objects.token(system, "weft-agent", Some(AUDIENCE), None).await?,
            "Unauthenticated",
            "bound to no pod",
        ),
        (
            fixture.objects.token(shop, "web", Some(AUDIENCE), Some("web")).await?,
            "PermissionDenied",
            "--agent-account",
        ),
        (format!("{}x", good.trim()), "Unauthenticated", "does not accept the token"),
        ("x".to_owned(), "Unauthenticated", "does not accept the token"),
        (String::new(), "Unauthenticated", "no bearer token"),
    ];
    for (token, code, reason) in cases {
        fs::write(&agent.token, token)?;
        let error = refused(&agent, &web).await?;
        ensure!(error.contains(code) && error.contains(reason), "{reason}: {error}");
        let line = authority.about(web.as_str())?;
        ensure!(field(&line, "message") == "refused a certificate", "{line:?}");
        ensure!(field(&line, "code") == code, "{line:?}");
    }
    fs::write(&agent.token, &good)?;
    agent.client.issue(&web).await?;

    // A token does not outlive its pod.
    fixture.remove_pod(system, "agent-a").await?;
    eventually_async("the token to end with its pod", async || Ok(refused(&agent, &web).await.ok()))
        .await
        .map(drop)
}

async fn away(fixture: &Fixture) -> Result<()> {
    const LIFE: Duration = Duration::from_secs(12);
    let mut authority = fixture.authority("ca", &[]).await?;
    let agent = fixture.agent(&authority, LIFE).await?;
    let web = identity(fixture, "web");
    let certificates = WorkloadCertificates::new(Source::Ca(agent.client.clone()));
    let (wanted, wanted_receiver) = watch::channel(BTreeSet::from([web.clone()]));
    let (sender, mut issued) = watch::channel(Issued::default());
    let task = tokio::spawn(certificates.run(wanted_receiver, sender));

    let first = have(&mut issued, &web).await?;
    // It is renewed in time.
    issued
        .wait_for(|issued| issued.certificates.get(&web).is_some_and(|now| **now != first))
        .await?;
    let last = have(&mut issued, &web).await?;
    let address = authority.address.to_string();
    authority.kill()?;

    // It stays until it ends, and no longer.
    issued.wait_for(|issued| !issued.certificates.contains_key(&web)).await?;
    let gone = SystemTime::now();
    ensure!(gone >= last.not_after, "it was given up early");
    ensure!(gone < last.not_after + Duration::from_secs(2), "it was kept beyond its end");
    ensure!(!issued.borrow().roots_pem.is_empty());

    // Soon after the authority is back, so is a certificate.
    let _authority = fixture.authority_at("ca", &address, &[]).await?;
    have(&mut issued, &web).await?;
    drop(wanted);
    task.await?;
    Ok(())
}

async fn have(
    issued: &mut watch::Receiver<Issued>,
    identity: &SpiffeId,
) -> Result<weft_agent::ca::WorkloadCertificate> {
    let has = issued.wait_for(|issued| issued.certificates.contains_key(identity));
    let now =
        tokio::time::timeout(Duration::from_secs(40), has).await.context("no certificate")??;
    Ok((*now.certificates[identity]).clone())
}

async fn istio(fixture: &Fixture) -> Result<()> {
    let ztunnel = format!("{}/ztunnel", fixture.system);
    let authority = fixture.authority("ca", &["--node-proxy-account", &ztunnel]).await?;
    let agent = fixture.agent(&authority, HOUR).await?;
    fixture.pod(&fixture.system, "ztunnel-b", "ztunnel", "node-b").await?;
    let (system, shop) = (&fixture.system, &fixture.shop);
    let token =
        fixture.objects.token(system, "ztunnel", Some("istio-ca"), Some("ztunnel-b")).await?;
    let client = IstioCertificateServiceClient::new(agent.client.channel());
    let key = new_key("test")?;
    let ask =
        async |token: &str, identity: Option<&SpiffeId>| -> Result<Vec<String>, tonic::Status> {
            let named =
                identity.cloned().unwrap_or_else(|| SpiffeId::new("cluster.local", shop, "web"));
            let der = request::write(&named, &key)
                .map_err(|error| tonic::Status::internal(error.to_string()))?;
            let metadata = identity.map(|identity| prost_types::Struct {
                fields: [(
                    "ImpersonatedIdentity".to_owned(),
                    prost_types::Value {
                        kind: Some(prost_types::value::Kind::StringValue(identity.to_string())),
                    },
                )]
                .into(),
            });
            let mut request = Request::new(IstioCertificateRequest {
                csr: material::pem_of(&der).replace("CERTIFICATE", "CERTIFICATE REQUEST"),
                validity_duration: 1800,
                metadata,
            });
            let value = format!("Bearer {token}");
            request.metadata_mut().insert(
                "authorization",
                value.parse().map_err(|_| tonic::Status::internal("no token"))?,
            );
            Ok(client.clone().create_certificate(request).await?.into_inner().cert_chain)
        };
    let (web, db) = (identity(fixture, "web"), identity(fixture, "db"));

    // Leaf first, root last.
    let chain = ask(&token, Some(&db)).await?;
    ensure!(chain.len() == 2, "{chain:?}");
    ensure!(
        chain.last().map(String::as_str) == Some(&**agent.client.roots().borrow()),
        "{chain:?}"
    );
    let leaf = material::certificates(chain[0].as_bytes()).map_err(anyhow::Error::msg)?;
    let not_after = material::not_after(&leaf[0]).map_err(anyhow::Error::msg)?;
    ensure!(not_after <= SystemTime::now() + HOUR / 2);

    let code = |answer: Result<Vec<String>, tonic::Status>| answer.map_err(|status| status.code());
    let denied = Err(tonic::Code::PermissionDenied);
    // Not of its node; for itself, which is off; an account that is no node proxy's.
    ensure!(code(ask(&token, Some(&web)).await) == denied);
    ensure!(code(ask(&token, None).await) == denied);
    let pod = fixture.objects.token(shop, "web", Some("istio-ca"), Some("web")).await?;
    ensure!(code(ask(&pod, Some(&web)).await) == denied);
    // The agents' service takes no tokens of that audience.
    fs::write(&agent.token, &token)?;
    ensure!(refused(&agent, &db).await?.contains("Unauthenticated"));

    let own = fixture.authority("own", &["--own-certificates"]).await?;
    let agent = fixture.agent(&own, HOUR).await?;
    let client = IstioCertificateServiceClient::new(agent.client.channel());
    let mut request = Request::new(IstioCertificateRequest {
        csr: material::pem_of(&request::write(&db, &key)?)
            .replace("CERTIFICATE", "CERTIFICATE REQUEST"),
        ..IstioCertificateRequest::default()
    });
    request.metadata_mut().insert("authorization", format!("Bearer {pod}").parse()?);
    client.clone().create_certificate(request).await?;
    // Whatever the request names, it is the caller's own.
    let line = own.about(web.as_str())?;
    ensure!(field(&line, "message") == "issued a certificate", "{line:?}");
    ensure!(field(&line, "why") == "it is the caller's own", "{line:?}");
    Ok(())
}
