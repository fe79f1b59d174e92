use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint, Server};
use weft_proto::v1::flows_response::Response as FlowOrLost;
use weft_proto::v1::observer_client::ObserverClient;
use weft_proto::v1::observer_server::ObserverServer;
use weft_proto::v1::proxy_config_client::ProxyConfigClient;
use weft_proto::v1::proxy_config_server::ProxyConfigServer;
use weft_proto::v1::{
    ExplainRequest, FlowsRequest, StatusRequest, StatusResponse, Update, WatchRequest,
};

use super::{Allowed, Ask, Listener, ObserverService, ProxyPorts, ProxyService, ProxyState};
use crate::ca::{Authority, Issued};
use crate::flows::FlowRing;
use crate::flows::test_support::{event, mesh, pod, publish};
use crate::identity::SpiffeId;
use crate::snapshot::Snapshots;

const DEADLINE: Duration = Duration::from_secs(60);
/// `nobody`.
const PROXY: u32 = 65534;
const PORTS: ProxyPorts = ProxyPorts { outbound: 15001, inbound: 15008 };
const NODES: &str = "---
apiVersion: v1
kind: Node
metadata:
  name: n1
status:
  addresses:
  - type: InternalIP
    address: 192.0.2.1
  - type: InternalIP
    address: 2001:db8::1
---
apiVersion: v1
kind: Node
metadata:
  name: n2
status:
  addresses:
  - type: InternalIP
    address: 192.0.2.2
";

async fn connect(socket: &Path) -> Channel {
    let uri = format!("unix://{}", socket.display());
    Endpoint::from_shared(uri).unwrap().connect().await.unwrap()
}

/// Connects as another user, and says whether the other side keeps the connection: then it speaks
/// first (HTTP/2 SETTINGS).
fn connects_as(uid: u32, socket: &Path) -> bool {
    let socket = socket.to_owned();
    // In Linux credentials belong to threads; this one ends with them.
    let connected = std::thread::spawn(move || {
        set_thread_res_uid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid)).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read(&mut [0]).is_ok_and(|count| count > 0)
    });
    connected.join().unwrap()
}

struct Proxy {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    state: watch::Sender<Arc<ProxyState>>,
}

async fn proxy(state: ProxyState, allowed: Allowed) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let socket = directory.path().join("proxy.sock");
    let listener = Listener::bind(&socket, allowed).await.unwrap();
    let (sender, receiver) = watch::channel(Arc::new(state));
    tokio::spawn(
        Server::builder()
            .add_service(ProxyConfigServer::new(ProxyService::new(receiver)))
            .serve_with_incoming(listener.incoming()),
    );
    Proxy { _directory: directory, socket, state: sender }
}

#[tokio::test]
async fn only_the_proxys_user_and_root_get_the_proxys_configuration() {
    let proxy = proxy(ProxyState::new("root"), Allowed { uid: Some(PROXY) }).await;
    let metadata = std::fs::metadata(&proxy.socket).unwrap();
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (PROXY, 0o600));
    // Even where the mode would let everybody in.
    std::fs::set_permissions(&proxy.socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    for (uid, kept) in [(PROXY, true), (0, true), (12345, false)] {
        let socket = proxy.socket.clone();
        let connected = tokio::task::spawn_blocking(move || connects_as(uid, &socket));
        assert_eq!(connected.await.unwrap(), kept, "uid {uid}");
    }
}

#[tokio::test]
async fn a_socket_is_taken_over_from_a_dead_agent_and_not_from_a_living_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    // Nobody listens there any more.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&path, Allowed { uid: None }).await.unwrap();
    UnixStream::connect(&path).unwrap();
    let error = Listener::bind(&path, Allowed { uid: None }).await.err().unwrap();
    assert!(error.to_string().contains("another agent answers"), "{error}");
    drop(listener);
    assert!(!path.exists());
}

fn workloads(updates: &[Update]) -> BTreeMap<String, (String, Vec<String>, bool)> {
    updates
        .iter()
        .flat_map(|update| update.workloads.clone())
        .map(|workload| (workload.key, (workload.identity, workload.tunnels, workload.local)))
        .collect()
}

#[test]
fn the_proxy_gets_everything_once_and_then_what_changes() {
    let mut state = ProxyState::new("root");
    let before = Arc::new(mesh(
        &(NODES.to_owned() + &pod("web", "n1", &["10.0.0.1"]) + &pod("api", "n2", &["10.0.1.1"])),
    ));
    state.set_mesh(&before, &before.nodes, "n1", PORTS);
    let all: Vec<Update> = state.updates_since(None).collect();
    assert_eq!(all.len(), 1);
    assert!(all[0].synced);
    assert_eq!(all[0].trust_roots, [b"root".to_vec()]);
    let settings = all[0].settings.clone().unwrap();
    assert_eq!(settings.outbound, ["192.0.2.1:15001", "[2001:db8::1]:15001"]);
    assert_eq!(settings.inbound, ["192.0.2.1:15008", "[2001:db8::1]:15008"]);
    let known = workloads(&all);
    assert_eq!(
        known["shop/api"],
        (
            "spiffe://cluster.local/ns/shop/sa/api".to_owned(),
            vec!["192.0.2.2:15008".to_owned()],
            false
        )
    );
    assert!(known["shop/web"].2);

    let mut next = state.clone();
    let moved = Arc::new(mesh(&(NODES.to_owned() + &pod("web", "n1", &["10.0.0.7"]))));
    next.set_mesh(&moved, &moved.nodes, "n1", PORTS);
    let changes: Vec<Update> = next.updates_since(Some(&state)).collect();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].removed_workloads, ["shop/api"]);
    assert_eq!(changes[0].workloads.len(), 1);
    assert_eq!(changes[0].settings, None);
    assert!(changes[0].trust_roots.is_empty());
    assert_eq!(next.updates_since(Some(&next)).count(), 0);

    // Who it is and where it is does not depend on the labels.
    let mut labelled = (*moved).clone();
    let pod = labelled.pods.values_mut().next().unwrap();
    Arc::make_mut(pod).labels = Arc::new([("app".into(), "web".into())].into());
    assert_ne!(labelled, *moved);
    let mut later = next.clone();
    later.set_mesh(&Arc::new(labelled), &moved.nodes, "n1", PORTS);
    assert_eq!(later.updates_since(Some(&next)).count(), 0);
}

#[test]
fn a_large_mesh_comes_in_several_messages_and_the_last_is_marked() {
    let pods: String = (0..4500)
        .map(|n| {
            let address = format!("10.0.{}.{}", n / 250, n % 250);
            pod(&format!("p{n}"), "n1", &[&address])
        })
        .collect();
    let mut state = ProxyState::new("root");
    let mesh = Arc::new(mesh(&pods));
    state.set_mesh(&mesh, &mesh.nodes, "n1", PORTS);
    let updates: Vec<Update> = state.updates_since(None).collect();
    assert_eq!(workloads(&updates).len(), 4500);
    let synced: Vec<bool> = updates.iter().map(|update| update.synced).collect();
    assert_eq!(synced, [false, false, true]);
}

#[tokio::test]
async fn a_proxy_that_watches_gets_renewed_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3600);
    let authority = Authority::open(directory.path(), "cluster.local", hour).unwrap();
    let identity = SpiffeId::new("cluster.local", "shop", "web");
    let now = std::time::SystemTime::now();
    let roots_pem: Arc<str> = authority.roots_pem().into();

    // The roots come with the first certificates.
    let state = ProxyState::new("");
    let proxy = proxy(state, Allowed { uid: Some(PROXY) }).await;
    let mut client = ProxyConfigClient::new(connect(&proxy.socket).await);
    let request = WatchRequest { version: "test".into() };
    let mut updates = client.watch(request).await.unwrap().into_inner();
    // Nothing is said before it is complete.
    assert!(timeout(Duration::from_millis(50), updates.next()).await.is_err());

    let mesh = Arc::new(mesh(&pod("web", "n1", &["10.0.0.1"])));
    proxy.state.send_modify(|state| Arc::make_mut(state).set_mesh(&mesh, &mesh.nodes, "n1", PORTS));
    let first = timeout(DEADLINE, updates.next()).await.unwrap().unwrap().unwrap();
    assert!(first.synced && first.certificates.is_empty() && first.workloads.len() == 1);
    assert!(first.trust_roots.is_empty());

    let mut keys = Vec::new();
    for round in 1..=2 {
        let issued = Issued {
            certificates: [(
                identity.clone(),
                Arc::new(authority.issue(&identity, now + hour * round).unwrap()),
            )]
            .into(),
            roots_pem: roots_pem.clone(),
        };
        proxy.state.send_modify(|state| Arc::make_mut(state).set_certificates(&issued));
        let update = timeout(DEADLINE, updates.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(update.certificates.len(), 1);
        assert_eq!(update.certificates[0].identity, identity.as_str());
        assert!(update.workloads.is_empty());
        assert_eq!(update.trust_roots.len(), usize::from(round == 1));
        keys.push(update.certificates[0].key.clone());
    }
    assert_ne!(keys[0], keys[1]);

    let issued = Issued { roots_pem, ..Issued::default() };
    proxy.state.send_modify(|state| Arc::make_mut(state).set_certificates(&issued));
    let update = timeout(DEADLINE, updates.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(update.removed_certificates, [identity.as_str()]);
}

#[tokio::test]
async fn tools_get_flows_old_and_new_status_and_explanations() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let flows = Arc::new(FlowRing::new(8));
    let snapshots = Arc::new(Snapshots::default());
    let (ask, mut asked) = mpsc::channel(1);
    let service = ObserverService {
        node: "n1".into(),
        flows: flows.clone(),
        snapshots: snapshots.clone(),
        ask,
    };
    let listener = Listener::bind(&socket, Allowed { uid: None }).await.unwrap();
    tokio::spawn(
        Server::builder()
            .add_service(ObserverServer::new(service))
            .serve_with_incoming(listener.incoming()),
    );
    let mut client = ObserverClient::new(connect(&socket).await);

    tokio::spawn(async move {
        while let Some(Ask::Status(answer)) = asked.recv().await {
            let status = StatusResponse { node: "n1".into(), ..StatusResponse::default() };
            answer.send(status).unwrap();
        }
    });
    assert_eq!(client.status(StatusRequest {}).await.unwrap().into_inner().node, "n1");
    let question = ExplainRequest {
        from: "web".into(),
        to: "192.0.2.1".into(),
        port: 80,
        protocol: "tcp".into(),
    };
    let early = client.explain(question.clone()).await.unwrap_err();
    assert!(early.message().contains("no policy has been applied"), "{early}");
    let mesh = mesh(&pod("web", "n1", &["10.0.0.1"]));
    publish(&snapshots, 1, &mesh, weft_model::compile::Tables::default());
    let explained = client.explain(question).await.unwrap().into_inner();
    assert_eq!(explained.verdict, "allowed");

    let numbered = |number: u16| event(&format!("10.0.0.1:{number}"), "10.0.0.2:80");
    flows.push(&[numbered(1), numbered(2), numbered(3)]);
    let request = FlowsRequest { last: 2, follow: true, ..FlowsRequest::default() };
    let mut stream = client.flows(request).await.unwrap().into_inner();
    let mut next = async || {
        let response = timeout(DEADLINE, stream.next()).await.unwrap().unwrap().unwrap();
        response.response.unwrap()
    };
    let mut port = async || match next().await {
        FlowOrLost::Flow(flow) => flow.source.unwrap().port,
        FlowOrLost::Lost(lost) => panic!("{lost} lost"),
    };
    assert_eq!((port().await, port().await), (2, 3));
    flows.push(&[numbered(4)]);
    assert_eq!(port().await, 4);
    flows.set_lost(5);
    flows.push(&[numbered(5)]);
    let FlowOrLost::Lost(lost) = next().await else { panic!("not told of lost events") };
    assert_eq!(lost, 5);
}
