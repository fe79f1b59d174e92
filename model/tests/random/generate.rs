//! Meshes, policies and connections by chance, small enough that everything meets everything.

mod istio;
mod network;
mod services;

use std::net::IpAddr;
use std::sync::Arc;

use fastrand::Rng;
use weft_model::evaluate::{Connection, Party};
use weft_model::mesh::*;

const NAMESPACES: [&str; 4] = ["shop", "bank", "default", "istio-system"];
const NODES: [&str; 3] = ["one", "two", "three"];
const ZONES: [&str; 2] = ["east", "west"];
const KEYS: [&str; 3] = ["app", "tier", "env"];
const VALUES: [&str; 3] = ["web", "db", "api"];
const ACCOUNTS: [&str; 3] = ["default", "web", "db"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "admin"];
const PORTS: [u16; 10] = [0, 1, 53, 79, 80, 81, 443, 8080, 9000, u16::MAX];
const PROTOCOLS: [Protocol; 4] = [Protocol::Icmp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.0.1.0/24",
    "10.0.1.2/31",
    "10.0.2.3/32",
    "10.0.0.7/16",
    "192.168.0.0/24",
    "192.168.0.1/32",
    "203.0.113.0/24",
    "203.0.113.128/25",
    "203.0.113.200/32",
    "fd00::/16",
    "fd00:0:0:1::/64",
    "::ffff:10.0.0.0/104",
    "::/64",
];
const OUTSIDE: [&str; 12] = [
    "203.0.113.1",
    "203.0.113.129",
    "203.0.113.200",
    "8.8.8.8",
    "0.0.0.1",
    "10.0.9.9",
    "10.9.0.1",
    "192.168.0.9",
    "2001:db8::1",
    "fd00:ffff::1",
    "::2",
    "fd00:0:0:1::ffff",
];

pub struct Generator {
    pub rng: Rng,
}

impl Generator {
    pub fn seeded(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed) }
    }

    pub fn mesh(&mut self) -> Mesh {
        let mut mesh = Mesh {
            settings: Settings {
                default_mtls: *self.of(&[
                    MtlsMode::Permissive,
                    MtlsMode::Permissive,
                    MtlsMode::Strict,
                    MtlsMode::Disable,
                ]),
                enroll_by_default: !self.chance(4),
                ..Settings::default()
            },
            ..Mesh::default()
        };
        for name in NAMESPACES {
            if !self.chance(5) {
                self.put_namespace(&mut mesh, name);
            }
        }
        for (index, name) in NODES.iter().enumerate() {
            self.put_node(&mut mesh, index, name);
        }
        for _ in 0..self.rng.usize(6..18) {
            self.put_pod(&mut mesh);
        }
        for _ in 0..self.rng.usize(0..5) {
            self.put_service(&mut mesh);
        }
        let most = *self.of(&[2, 6, 14]);
        for _ in 0..self.rng.usize(0..=most) {
            self.put_policy(&mut mesh);
        }
        for _ in 0..self.rng.usize(0..=most / 2) {
            self.put_authorization(&mut mesh);
        }
        for _ in 0..self.rng.usize(0..4) {
            self.put_peer_authentication(&mut mesh);
        }
        mesh
    }

    pub fn put_namespace(&mut self, mesh: &mut Mesh, name: &str) {
        let mut labels = self.labels();
        labels.insert(NAMESPACE_NAME_LABEL.into(), name.into());
        let enrolled = *self.of(&[None, None, Some(true), Some(false)]);
        mesh.namespaces.insert(name.into(), Namespace { name: name.into(), labels, enrolled });
    }

    fn put_node(&mut self, mesh: &mut Mesh, index: usize, name: &str) {
        let mut addresses = vec![address(&format!("192.168.0.{}", index + 1))];
        if !self.chance(3) {
            addresses.push(address(&format!("fd00:1::{}", index + 1)));
        }
        let mut labels = self.labels();
        if !self.chance(4) {
            labels.insert(ZONE_LABEL.into(), (*self.of(&ZONES)).into());
        }
        let node = Node { name: name.into(), labels, addresses, pod_cidrs: Vec::new() };
        mesh.nodes.insert(name.into(), node);
    }

    pub fn put_pod(&mut self, mesh: &mut Mesh) {
        let namespace: Arc<str> = (*self.of(&NAMESPACES)).into();
        let node = self.rng.usize(0..NODES.len());
        let host_network = self.chance(8);
        let finished = self.chance(12);
        let number = self.rng.usize(1..30);
        let mut addresses = Vec::new();
        if host_network {
            addresses.extend(
                mesh.nodes.get(NODES[node]).into_iter().flat_map(|node| node.addresses.clone()),
            );
        } else if !self.chance(20) {
            let families = self.rng.usize(0..4);
            if families != 0 {
                // Now and then the same address twice.
                addresses.push(address(&format!("10.0.{}.{number}", node + 1)));
            }
            if families != 1 {
                addresses.push(address(&format!("fd00:0:0:{}::{number:x}", node + 1)));
            }
        }
        let named_ports = (0..self.rng.usize(0..4))
            .map(|_| NamedPort {
                name: (*self.of(&PORT_NAMES)).into(),
                protocol: *self.of(&PROTOCOLS[1..]),
                port: *self.of(&PORTS),
            })
            .collect();
        let name = Name { namespace, name: format!("pod-{number}").into() };
        let pod = Pod {
            name: name.clone(),
            uid: format!("uid-{}", self.rng.u16(..)).into(),
            labels: Arc::new(self.labels()),
            node: NODES[node].into(),
            service_account: (*self.of(&ACCOUNTS)).into(),
            addresses,
            host_network,
            named_ports,
            finished,
            enrolled: *self.of(&[None, None, None, Some(true), Some(false)]),
            accelerate: true,
        };
        mesh.pods.insert(name, Arc::new(pod));
    }

    fn needs(&mut self) -> Needs {
        match self.rng.u8(0..10) {
            0 => Needs::Http,
            1 => Needs::Unsupported,
            _ => Needs::L4,
        }
    }

    fn workloads(&mut self) -> Workloads {
        let namespace = match self.rng.u8(0..3) {
            0 => Selector::EVERYTHING,
            1 => Selector::label(NAMESPACE_NAME_LABEL, self.rng.choice(NAMESPACES).unwrap()),
            _ => self.selector(),
        };
        let service_account = if self.chance(6) {
            Selector::label(SERVICE_ACCOUNT_LABEL, self.rng.choice(ACCOUNTS).unwrap())
        } else {
            Selector::EVERYTHING
        };
        Workloads { namespace, pod: self.selector(), service_account }
    }

    fn selector(&mut self) -> Selector {
        let requirements = (0..self.few())
            .map(|_| {
                let values = (0..self.rng.usize(1..3)).map(|_| (*self.of(&VALUES)).into());
                let values: Vec<Arc<str>> = values.collect();
                let operator = match self.rng.u8(0..6) {
                    0 => Operator::NotIn(values),
                    1 => Operator::Exists,
                    2 => Operator::DoesNotExist,
                    _ => Operator::In(values),
                };
                Requirement { key: (*self.of(&KEYS)).into(), operator }
            })
            .collect();
        Selector { requirements }
    }

    fn labels(&mut self) -> Labels {
        let mut labels = Labels::new();
        for key in KEYS {
            if self.chance(2) {
                labels.insert(key.into(), (*self.of(&VALUES)).into());
            }
        }
        labels
    }

    fn block(&mut self) -> ipnet::IpNet {
        self.of(&BLOCKS).parse().unwrap()
    }

    /// Mostly none, one or two.
    fn few(&mut self) -> usize {
        *self.of(&[0, 0, 0, 1, 1, 2])
    }

    pub fn connection(&mut self, mesh: &Mesh) -> Connection {
        Connection {
            source: self.party(mesh),
            destination: self.party(mesh),
            protocol: *self.of(&[
                Protocol::Tcp,
                Protocol::Tcp,
                Protocol::Tcp,
                Protocol::Udp,
                Protocol::Udp,
                Protocol::Sctp,
                Protocol::Icmp,
            ]),
            port: if self.chance(5) { self.rng.u16(..) } else { *self.of(&PORTS) },
            proven: self.chance(2),
        }
    }

    fn party(&mut self, mesh: &Mesh) -> Party {
        if self.chance(4) {
            return Party::Address(self.address(mesh));
        }
        let pods: Vec<&Name> = mesh.pods.keys().collect();
        match self.rng.choice(pods) {
            Some(name) => Party::Pod(name.clone()),
            None => Party::Address(self.address(mesh)),
        }
    }

    /// Of a pod, of a node, or of neither.
    fn address(&mut self, mesh: &Mesh) -> IpAddr {
        let pods = mesh.pods.values().flat_map(|pod| &pod.addresses);
        let nodes = mesh.nodes.values().flat_map(|node| &node.addresses);
        let known: Vec<IpAddr> = pods.chain(nodes).copied().collect();
        if self.chance(2) && !known.is_empty() {
            return *self.of(&known);
        }
        let outside = *self.of(&OUTSIDE);
        address(outside)
    }

    /// Once in `n`.
    pub fn chance(&mut self, n: u32) -> bool {
        self.rng.u32(0..n) == 0
    }

    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.rng.usize(0..all.len())]
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn origin(kind: &str, name: &Name, field: &str) -> Origin {
    Origin {
        object: ObjectRef { kind: kind.into(), name: name.clone() },
        field: field.into(),
        location: None,
    }
}
