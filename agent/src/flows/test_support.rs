//! Small meshes and events for tests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use weft_common::{Decision, Endpoint, FLOW_EGRESS, FlowEvent, FlowKind, Path, Reason};
use weft_model::compile::Tables;
use weft_model::dialect;
use weft_model::mesh::{Mesh, Settings};

use crate::snapshot::{Snapshot, Snapshots};
use crate::source::Manifests;

pub(crate) fn mesh(text: &str) -> Mesh {
    let mut manifests = Manifests::default();
    let documents = dialect::read_yaml(&Settings::default(), "mesh.yaml", text);
    for document in &documents {
        assert!(document.is_in_force(), "{:?}", document.findings);
    }
    manifests.replace(&"mesh.yaml".into(), documents);
    manifests.settled(Settings::default()).0
}

pub(crate) fn pod(name: &str, node: &str, addresses: &[&str]) -> String {
    let addresses: String =
        addresses.iter().map(|address| format!("  - ip: \"{address}\"\n")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  \
         uid: uid-{name}\n  labels:\n    app: {name}\n    weft.dev/mesh: enabled\n\
         spec:\n  nodeName: {node}\n  serviceAccountName: {name}\n  containers: []\n\
         status:\n  podIPs:\n{addresses}"
    )
}

pub(crate) fn service(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\n\
         spec:\n  clusterIP: {address}\n  clusterIPs: [{address}]\n  selector:\n    app: {name}\n  \
         ports:\n  - port: 80\n    targetPort: 8080\n"
    )
}

pub(crate) fn endpoint(text: &str) -> Endpoint {
    let socket: SocketAddr = text.parse().unwrap();
    Endpoint { address: socket.ip().into(), port: socket.port().into() }
}

pub(crate) fn event(source: &str, destination: &str) -> FlowEvent {
    FlowEvent {
        time: 1_000_000_000,
        source: endpoint(source),
        destination: endpoint(destination),
        dialled: endpoint(destination),
        source_pod: 0,
        destination_pod: 0,
        decision: Decision::because(Reason::Unrestricted),
        kind: FlowKind::Open as u8,
        path: Path::Direct as u8,
        protocol: 6,
        flags: FLOW_EGRESS,
        bytes_out: 0,
        bytes_in: 0,
        duration: 0,
        generation: 1,
        unused: 0,
    }
}

pub(crate) fn publish(snapshots: &Snapshots, generation: u32, mesh: &Mesh, tables: Tables) {
    snapshots.announce(mesh, &tables);
    snapshots.publish(Snapshot {
        generation,
        applied: SystemTime::now(),
        mesh: Arc::new(mesh.clone()),
        tables: Arc::new(tables),
    });
}
