//! How long a compilation takes: a cluster of 10,000 pods with 1,000 policies, for a node with
//! 250 of the pods; from nothing, and after one change. Run it with `--release`.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use weft_model::compile::{Compiler, Tables};
use weft_model::mesh::*;

const NAMESPACES: usize = 100;
const PODS_PER_NAMESPACE: usize = 100;
const APPS_PER_NAMESPACE: usize = 10;
const NODES: usize = 40;

fn main() {
    let mut mesh = mesh();
    let node = "node-0";
    let mut compiler = Compiler::starting_at(1);
    let tables = measure("from nothing", &mut compiler, &mesh, node);
    println!(
        "local pods {}, addresses {}, policy {}, ports {}, services {}, backends {}, rules {}",
        tables.pods.len(),
        tables.addresses.len(),
        tables.policy.len(),
        tables.ports.len(),
        tables.services.len(),
        tables.backends.len(),
        tables.rules.len()
    );
    measure("nothing changed", &mut compiler, &mesh, node);
    let edited = policy(3, 4, 9999);
    mesh.policies.insert(edited.origin.object.clone(), vec![Arc::new(edited)]);
    measure("one policy changed", &mut compiler, &mesh, node);
    let added = pod(7, 1000);
    mesh.pods.insert(added.name.clone(), Arc::new(added));
    measure("one pod added", &mut compiler, &mesh, node);
    let label = |policy: &mut Policy| policy.subject.pod = Selector::label("version", "2");
    let mut reading = policy(3, 5, 80);
    label(&mut reading);
    mesh.policies.insert(reading.origin.object.clone(), vec![Arc::new(reading)]);
    measure("one policy changed", &mut compiler, &mesh, node);
}

fn measure(what: &str, compiler: &mut Compiler, mesh: &Mesh, node: &str) -> Tables {
    let start = Instant::now();
    let tables = compiler.compile(mesh, node);
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    tables
}

fn mesh() -> Mesh {
    let mut mesh = Mesh {
        settings: Settings { enroll_by_default: true, ..Settings::default() },
        ..Mesh::default()
    };
    for node in 0..NODES {
        let name: Arc<str> = format!("node-{node}").into();
        let addresses = vec![IpAddr::from([192, 168, 0, node as u8 + 1])];
        let node =
            Node { name: name.clone(), labels: Labels::new(), addresses, pod_cidrs: Vec::new() };
        mesh.nodes.insert(name, node);
    }
    for namespace in 0..NAMESPACES {
        let name: Arc<str> = format!("namespace-{namespace}").into();
        let labels = Labels::from([
            (NAMESPACE_NAME_LABEL.into(), name.clone()),
            ("team".into(), format!("team-{}", namespace % 7).into()),
        ]);
        mesh.namespaces.insert(name.clone(), Namespace { name, labels, enrolled: None });
        for number in 0..PODS_PER_NAMESPACE {
            let pod = pod(namespace, number);
            mesh.pods.insert(pod.name.clone(), Arc::new(pod));
        }
        for app in 0..APPS_PER_NAMESPACE {
            let policy = policy(namespace, app, 8080);
            mesh.policies.insert(policy.origin.object.clone(), vec![Arc::new(policy)]);
            let service = service(namespace, app);
            mesh.services.insert(service.name.clone(), Arc::new(service));
        }
    }
    mesh
}

fn pod(namespace: usize, number: usize) -> Pod {
    let name = Name {
        namespace: format!("namespace-{namespace}").into(),
        name: format!("pod-{number}").into(),
    };
    let index = namespace * PODS_PER_NAMESPACE + number;
    let labels = Labels::from([
        ("app".into(), format!("app-{}", number % APPS_PER_NAMESPACE).into()),
        ("pod-template-hash".into(), format!("{index:x}").into()),
        ("version".into(), format!("{}", number % 3).into()),
    ]);
    Pod {
        uid: format!("uid-{index}").into(),
        labels: Arc::new(labels),
        node: format!("node-{}", index % NODES).into(),
        service_account: "default".into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + index as u32))],
        host_network: false,
        named_ports: Vec::new(),
        finished: false,
        enrolled: None,
        accelerate: true,
        name,
    }
}

fn policy(namespace: usize, app: usize, port: u16) -> Policy {
    let object = ObjectRef {
        kind: "NetworkPolicy".into(),
        name: Name {
            namespace: format!("namespace-{namespace}").into(),
            name: format!("app-{app}").into(),
        },
    };
    let origin =
        |field: &str| Origin { object: object.clone(), field: field.into(), location: None };
    let own = Selector::label(NAMESPACE_NAME_LABEL, &format!("namespace-{namespace}"));
    let of_app = |app: usize| {
        Peer::Workloads(Workloads {
            namespace: own.clone(),
            pod: Selector::label("app", &format!("app-{app}")),
            service_account: Selector::EVERYTHING,
        })
    };
    let of_team = Peer::Workloads(Workloads {
        namespace: Selector::label("team", &format!("team-{}", namespace % 7)),
        pod: Selector::label("app", "app-0"),
        service_account: Selector::EVERYTHING,
    });
    let block = Peer::Cidr {
        cidr: format!("10.{}.0.0/16", 100 + namespace).parse().expect("a block"),
        except: vec![format!("10.{}.{app}.0/24", 100 + namespace).parse().expect("a block")],
    };
    let rule = |field: &str, direction, peers| Rule {
        origin: origin(field),
        direction,
        effect: Effect::Allow,
        peers: Some(peers),
        ports: Some(vec![PortMatch {
            protocol: Some(Protocol::Tcp),
            ports: Ports::Range(port, port),
        }]),
        needs: Needs::L4,
    };
    Policy {
        origin: origin("spec"),
        subject: Workloads {
            namespace: own.clone(),
            pod: Selector::label("app", &format!("app-{app}")),
            service_account: Selector::EVERYTHING,
        },
        isolates_ingress: true,
        isolates_egress: true,
        dialect: Dialect::Kubernetes,
        rules: vec![
            rule("spec.ingress[0]", Direction::Ingress, vec![of_app((app + 1) % 10), of_team]),
            rule("spec.egress[0]", Direction::Egress, vec![of_app((app + 9) % 10), block]),
        ],
    }
}

fn service(namespace: usize, app: usize) -> Service {
    let name = Name {
        namespace: format!("namespace-{namespace}").into(),
        name: format!("app-{app}").into(),
    };
    let index = (namespace * APPS_PER_NAMESPACE + app) as u32;
    Service {
        labels: Labels::new(),
        selector: Some(Selector::label("app", &format!("app-{app}"))),
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + index))],
        external: Vec::new(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: PortRef::Number(8080),
            node_port: None,
        }],
        affinity_seconds: None,
        internal_local: false,
        publish_not_ready: false,
        origin: Origin {
            object: ObjectRef { kind: "Service".into(), name: name.clone() },
            field: "spec".into(),
            location: None,
        },
        name,
    }
}
