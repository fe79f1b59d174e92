//! Tables of services and their endpoints, and where connections to them go.

use std::net::IpAddr;

use super::backends;
use crate::compile::Compiler;
use crate::dialect::read_yaml;
use crate::mesh::{Mesh, Protocol, Settings};

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/zone: east}}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: b, labels: {topology.kubernetes.io/zone: west}}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
---
";

/// A service with these lines in its spec, and a slice with these endpoints.
fn mesh(spec: &str, endpoints: &str) -> Mesh {
    let text = format!(
        "{NODES}apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  clusterIPs: [10.96.0.1, 'fd00::1']
  ports: [{{name: http, port: 80, targetPort: 8080, nodePort: 30080}}]
  {spec}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints: [{endpoints}]
"
    );
    let mut mesh = Mesh { settings: Settings::default(), ..Mesh::default() };
    for document in read_yaml(&Settings::default(), "m.yaml", &text) {
        assert!(document.is_in_force(), "{:?}\nin\n{text}", document.findings);
        mesh.insert_document(&document);
    }
    mesh
}

/// The last numbers of the backends' addresses, by the evaluator and by the tables alike.
fn reached(mesh: &Mesh, node: &str, address: &str, port: u16) -> Option<Vec<u8>> {
    let address: IpAddr = address.parse().unwrap();
    let backends = backends(mesh, node, address, port, Protocol::Tcp);
    let tables = Compiler::starting_at(1).compile(mesh, node);
    let entry = tables.services.get(&(address.into(), port, Protocol::Tcp.number()));
    let compiled = entry.map(|entry| {
        let slots = (0..entry.count).map(|slot| tables.backends[&(entry.backends, slot)]);
        slots.map(|one| IpAddr::from(one.address)).collect::<Vec<_>>()
    });
    let evaluated = backends.as_ref().map(|all| all.iter().map(|one| one.ip()).collect());
    assert_eq!(compiled, evaluated, "from {node} to {address} port {port}");
    let last = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    evaluated.map(|all: Vec<IpAddr>| all.iter().map(last).collect())
}

fn endpoint(last: u8, node: &str, conditions: &str, hints: &str) -> String {
    format!(
        "{{addresses: [10.0.0.{last}], nodeName: {node}, conditions: {{{conditions}}}, hints: \
         {{{hints}}}}}"
    )
}

const READY: &str = "ready: true";
const STARTS: &str = "ready: false, serving: false";
const DRAINS: &str = "ready: false, serving: true, terminating: true";
const GOES: &str = "ready: false, serving: false, terminating: true";

#[test]
fn endpoints_are_chosen_by_their_conditions() {
    let publish = "publishNotReadyAddresses: true";
    let local = "internalTrafficPolicy: Local";
    // Conditions of endpoint 1 (on node a) and 2 (on node b), and what is reached from a.
    for (spec, first, second, expected) in [
        ("", READY, READY, &[1, 2][..]),
        ("", READY, STARTS, &[1]),
        ("", READY, DRAINS, &[1]),
        ("", STARTS, DRAINS, &[2]),
        ("", GOES, DRAINS, &[2]),
        ("", GOES, STARTS, &[]),
        (publish, STARTS, READY, &[1, 2]),
        (publish, GOES, STARTS, &[1, 2]),
        (local, READY, READY, &[1]),
        (local, DRAINS, READY, &[1]),
        (local, STARTS, READY, &[]),
    ] {
        let endpoints = [endpoint(1, "a", first, ""), endpoint(2, "b", second, "")].join(", ");
        let found = reached(&mesh(spec, &endpoints), "a", "10.96.0.1", 80);
        assert_eq!(found.as_deref(), Some(expected), "{spec:?}: {first}; {second}");
    }
}

#[test]
fn hints_are_followed_where_all_have_them_and_one_is_meant() {
    let zone = |name: &str| format!("forZones: [{{name: {name}}}]");
    let node = |name: &str| format!("forNodes: [{{name: {name}}}]");
    let both =
        |zone_name: &str, node_name: &str| format!("{}, {}", zone(zone_name), node(node_name));
    for (first, second, expected) in [
        (zone("east"), zone("west"), &[1][..]),
        (zone("east"), String::new(), &[1, 2]),
        (zone("west"), zone("north"), &[1, 2]),
        (node("b"), node("a"), &[2]),
        (node("b"), node("c"), &[1, 2]),
        (both("east", "b"), both("west", "a"), &[2]),
        (both("east", "b"), zone("west"), &[1]),
    ] {
        let endpoints = [endpoint(1, "a", READY, &first), endpoint(2, "b", READY, &second)];
        let mesh = mesh("", &endpoints.join(", "));
        let found = reached(&mesh, "a", "10.96.0.1", 80);
        assert_eq!(found.as_deref(), Some(expected), "{first}; {second}");
        let local = self::mesh("internalTrafficPolicy: Local", &endpoints.join(", "));
        assert_eq!(reached(&local, "a", "10.96.0.1", 80), Some(vec![1]), "{first}; {second}");
    }
    // What is not ready has no say.
    let endpoints =
        [endpoint(1, "a", READY, &zone("east")), endpoint(2, "b", STARTS, "")].join(", ");
    assert_eq!(reached(&mesh("", &endpoints), "a", "10.96.0.1", 80), Some(vec![1]));
    // A node without a zone has nothing to go by.
    let endpoints =
        [endpoint(1, "a", READY, &zone("east")), endpoint(2, "b", READY, &zone("west"))];
    assert_eq!(reached(&mesh("", &endpoints.join(", ")), "c", "10.96.0.1", 80), Some(vec![1, 2]));
}

#[test]
fn a_service_is_reached_at_all_its_addresses() {
    let endpoints = [endpoint(1, "a", READY, ""), endpoint(2, "b", READY, "")].join(", ");
    let spec = "externalIPs: [198.51.100.7, 10.96.0.1]\n  internalTrafficPolicy: Local";
    let mesh = mesh(spec, &endpoints);
    for (address, port, expected) in [
        ("10.96.0.1", 80, Some(&[1][..])),
        ("10.96.0.1", 81, None),
        // Endpoints of the other family only.
        ("fd00::1", 80, Some(&[])),
        // The internal policy is for the cluster's own address.
        ("198.51.100.7", 80, Some(&[1, 2])),
        ("192.168.0.1", 30080, Some(&[1, 2])),
        ("192.168.0.2", 30080, Some(&[1, 2])),
        ("192.168.0.2", 80, None),
        ("198.51.100.7", 30080, None),
        ("198.51.100.8", 80, None),
    ] {
        assert_eq!(reached(&mesh, "a", address, port).as_deref(), expected, "{address}:{port}");
    }
}

#[test]
fn what_has_no_address_of_its_own_is_left_to_dns() {
    for spec in ["type: ExternalName\n  externalName: example.com", "clusterIP: None"] {
        let text = format!(
            "{NODES}apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
             spec:\n  {spec}\n  ports: [{{port: 80}}]\n"
        );
        let mut mesh = Mesh::default();
        for document in read_yaml(&Settings::default(), "m.yaml", &text) {
            assert!(document.is_in_force(), "{:?}", document.findings);
            mesh.insert_document(&document);
        }
        assert!(Compiler::starting_at(1).compile(&mesh, "a").services.is_empty(), "{spec}");
    }
}
