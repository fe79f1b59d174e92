//! What users are told about their objects, in a real API server.

use std::net::SocketAddr;
use std::process::Command;

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Server as GrpcServer};
use tonic::{Request, Status};
use weft_agent::conditions::report::{self, Dial, Versions};
use weft_agent::conditions::{ControlService, LeaderSettings, Nodes, Shared};
use weft_agent::crd::{self, MeshPolicy, MeshPolicySpec};
use weft_model::mesh::{Name, ObjectRef, ObjectVersion, Settings};
use weft_proto::v1::control_server::ControlServer;
use weft_tests::eventually_async;

use crate::definitions::install;
use crate::server::Server;

/// Takes a caller's word for its node.
#[derive(Clone)]
struct Trusting;

#[tonic::async_trait]
impl Nodes for Trusting {
    async fn node(&self, metadata: &MetadataMap) -> Result<String, Status> {
        let node = metadata.get("node").and_then(|node| node.to_str().ok());
        node.map(ToOwned::to_owned).ok_or_else(|| Status::unauthenticated("no node"))
    }
}

struct Agent {
    node: &'static str,
    leader: SocketAddr,
}

impl Dial for Agent {
    fn dial(&self) -> Result<Channel, String> {
        Ok(Endpoint::from_shared(format!("http://{}", self.leader)).unwrap().connect_lazy())
    }

    fn authorized<T>(&self, message: T) -> Result<Request<T>, String> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("node", self.node.parse().unwrap());
        Ok(request)
    }
}

/// Where the leader listens.
async fn serve(shared: Shared) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = ControlServer::new(ControlService::new(shared, Trusting));
    tokio::spawn(
        GrpcServer::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

/// Waits until a condition of a policy contains some words.
async fn condition(policies: &Api<MeshPolicy>, name: &str, type_: &str, said: &str) -> MeshPolicy {
    let what = format!("{name} to be {type_}: {said}");
    let found = eventually_async(&what, async || {
        let policy = policies.get(name).await?;
        let conditions = policy.status.clone().unwrap_or_default().conditions;
        let found = conditions.iter().find(|condition| condition.type_ == type_);
        let says = found.is_some_and(|found| {
            format!("{} {} {}", found.status, found.reason, found.message).contains(said)
        });
        Ok(says.then_some(policy))
    });
    match found.await {
        Ok(policy) => policy,
        Err(error) => {
            panic!("{error}: {:#?}", policies.get(name).await.map(|policy| policy.status))
        }
    }
}

/// Waits for an Event about an object that contains some words.
async fn event(client: &Client, about: &str, said: &str, holds: impl Fn(&Event) -> bool) -> Event {
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let is_it = |event: &Event| {
        let regarding = event.regarding.as_ref().and_then(|object| object.name.as_deref());
        regarding == Some(about)
            && event.note.as_deref().is_some_and(|note| note.contains(said))
            && holds(event)
    };
    eventually_async(&format!("an Event about {about} that says {said}"), async || {
        Ok(events.list(&ListParams::default()).await?.items.into_iter().find(is_it))
    })
    .await
    .unwrap()
}

/// Definitions of the kinds of others, as in a cluster whose Istio serves no `v1` yet.
fn older_istio() -> Vec<CustomResourceDefinition> {
    let mut definitions = crd::compat();
    for definition in &mut definitions {
        let spec = &mut definition.spec;
        if spec.group == "security.istio.io" {
            spec.versions.retain(|version| version.name == "v1beta1");
            spec.versions.iter_mut().for_each(|version| version.storage = true);
        }
    }
    definitions
}

fn version(policy: &MeshPolicy) -> Versions {
    let name = Name { namespace: "default".into(), name: policy.name_any().into() };
    let version = ObjectVersion {
        uid: policy.uid().unwrap().into(),
        generation: policy.metadata.generation.unwrap(),
    };
    let object = ObjectRef { kind: "MeshPolicy".into(), name };
    std::sync::Arc::new([(object, version)].into())
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_say_what_became_of_them() {
    let server = Server::start().await;
    let client = server.objects.client();
    install(&client, crd::own()).await;
    install(&client, older_istio()).await;
    let policies: Api<MeshPolicy> = Api::namespaced(client.clone(), "default");
    let apply = async |name: &str, spec: serde_json::Value| {
        let spec: MeshPolicySpec = serde_json::from_value(spec).unwrap();
        let policy = MeshPolicy::new(name, spec);
        let params = PatchParams::apply("weft-tests").force();
        policies.patch(name, &params, &Patch::Apply(&policy)).await.unwrap()
    };
    let good = apply("good", json!({"endpointSelector": {}, "ingress": [{}]})).await;
    apply("bad", json!({"endpointSelector": {}, "ingress": [{"fromCIDR": ["nonsense"]}]})).await;

    let settings = LeaderSettings {
        mesh: Settings::default(),
        agents: ("weft-system".to_owned(), "weft-agent".to_owned()),
        instance: "weft-ca-0".to_owned(),
    };
    // A replica that does not lead turns agents away.
    let idle = serve(Shared::default()).await;
    let other = Agent { node: "node-a", leader: idle };
    let mut turned_away = weft_proto::v1::control_client::ControlClient::new(other.dial().unwrap());
    let request = other.authorized(tokio_stream::empty()).unwrap();
    let refused = turned_away.report(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);

    let shared = Shared::default();
    let leader = serve(shared.clone()).await;
    let leading = tokio::spawn(shared.lead(client.clone(), settings.clone()));
    let nodes: Vec<_> = ["node-a", "node-b"]
        .into_iter()
        .map(|node| {
            let (in_force, receiver) = watch::channel(Some(Versions::default()));
            tokio::spawn(report::run(Agent { node, leader }, receiver));
            in_force
        })
        .collect();

    condition(&policies, "good", "Accepted", "True Accepted").await;
    condition(&policies, "bad", "Accepted", "False Rejected spec.ingress[0].fromCIDR[0]").await;
    condition(&policies, "bad", "Enforced", "False NotAccepted").await;
    nodes[0].send_replace(Some(version(&good)));
    condition(&policies, "good", "Enforced", "enforced on 1 of 2 nodes; not on node-b").await;
    nodes[1].send_replace(Some(version(&good)));
    let enforced =
        condition(&policies, "good", "Enforced", "True Enforced enforced on 2 of 2 nodes").await;
    assert_eq!(enforced.status.unwrap().observed_generation, good.metadata.generation);

    // The next generation, and then quiet.
    let next = apply("good", json!({"endpointSelector": {}, "egress": [{}]})).await;
    assert_ne!(next.metadata.generation, good.metadata.generation);
    condition(&policies, "good", "Enforced", "enforced on 0 of 2 nodes").await;
    nodes.iter().for_each(|node| drop(node.send_replace(Some(version(&next)))));
    let quiet =
        condition(&policies, "good", "Enforced", "True Enforced enforced on 2 of 2 nodes").await;
    // Whoever writes has looked at everything when it has told of another.
    for name in ["other-1", "other-2", "other-3"] {
        apply(name, json!({"endpointSelector": {}, "egress": [{}]})).await;
        condition(&policies, name, "Accepted", "True Accepted").await;
    }
    let later = policies.get("good").await.unwrap();
    assert_eq!(later.metadata.resource_version, quiet.metadata.resource_version, "written again");

    // Events, of other kinds too.
    let authorization = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "http", "namespace": "default"},
        "spec": {"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]},
    });
    server.objects.apply(&authorization).await.unwrap();
    let warned = event(&client, "http", "spec.rules[0].to[0].operation.methods", |_| true).await;
    assert_eq!(warned.reason.as_deref(), Some("NotEnforced"));
    let rejected = event(&client, "bad", "spec.ingress[0].fromCIDR[0]", |_| true).await;
    assert_eq!(rejected.reason.as_deref(), Some("Rejected"));

    // Also where it is other objects that keep one from being in force.
    let off = |cilium: bool| {
        json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "MeshSettings",
            "metadata": {"name": "default"}, "spec": {"dialects": {"cilium": cilium}},
        })
    };
    let cilium = json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"},
        "spec": {"endpointSelector": {}, "ingress": [{}]},
    });
    server.objects.apply(&cilium).await.unwrap();
    server.objects.apply(&off(false)).await.unwrap();
    let told = event(&client, "closed", "dialects.cilium: false", |_| true).await;
    assert_eq!(told.reason.as_deref(), Some("NotEnforced"));
    server.objects.apply(&off(true)).await.unwrap();

    // So does the command, and tells of kinds that nobody reads.
    let mut servers = older_istio().remove(0);
    servers.metadata.name = Some("servers.policy.linkerd.io".to_owned());
    servers.spec.group = "policy.linkerd.io".to_owned();
    servers.spec.names = serde_json::from_value(json!({
        "kind": "Server", "listKind": "ServerList", "plural": "servers", "singular": "server",
    }))
    .unwrap();
    install(&client, vec![servers]).await;
    let version = &older_istio()[0].spec.versions[0].name.clone();
    let unread = json!({
        "apiVersion": format!("policy.linkerd.io/{version}"), "kind": "Server",
        "metadata": {"name": "narrow", "namespace": "default"},
        "spec": {"endpointSelector": {}},
    });
    server.objects.apply(&unread).await.unwrap();
    let mut analyze = Command::new(env!("CARGO_BIN_EXE_weft"));
    analyze.arg("analyze").arg("--kubeconfig").arg(server.api.kubeconfig());
    let output = tokio::task::spawn_blocking(move || analyze.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for said in [
        "spec.ingress[0].fromCIDR[0]",
        "spec.rules[0].to[0].operation.methods",
        "Server.policy.linkerd.io default/narrow: kind: Server (policy.linkerd.io) is not \
         supported and not enforced",
    ] {
        assert!(text.contains(said), "{text}");
    }

    // The next leader says it again in the same Event.
    leading.abort();
    let next = Shared::default();
    tokio::spawn(next.lead(client.clone(), settings));
    let repeated = |event: &Event| event.series.as_ref().is_some_and(|series| series.count >= 2);
    let again = event(&client, "bad", "spec.ingress[0].fromCIDR[0]", repeated).await;
    assert_eq!(again.name_any(), rejected.name_any());
}
