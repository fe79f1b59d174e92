//! Meshes, policies and connections by chance, small enough that everything meets everything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastrand::Rng;
use weft_model::evaluate::{Connection, Party};
use weft_model::mesh::*;

const NAMESPACES: [&str; 4] = ["shop", "bank", "default", "istio-system"];
const NODES: [&str; 3] = ["one", "two", "three"];
const ZONES: [&str; 2] = ["east", "west"];
const NODE_PORTS: [u16; 2] = [30_080, 30_081];
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
            labels: self.labels(),
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

    pub fn put_service(&mut self, mesh: &mut Mesh) {
        let (namespace, name) = *self.of(&[
            ("default", "kubernetes"),
            ("shop", "web"),
            ("shop", "db"),
            ("bank", "web"),
        ]);
        let name = Name { namespace: namespace.into(), name: name.into() };
        let number = self.rng.u8(1..250);
        let mut addresses = Vec::new();
        if !self.chance(4) {
            addresses.push(address(&format!("10.96.0.{number}")));
            addresses.push(address(&format!("fd00:96::{number:x}")));
        }
        let mut external = Vec::new();
        if self.chance(3) {
            let nodes: Vec<_> = mesh.nodes.values().flat_map(|node| &node.addresses).collect();
            external.extend(nodes.first().map(|address| **address));
            external.push(address("198.51.100.7"));
            // Another's own address goes first.
            external.push(address(&format!("10.96.0.{}", self.rng.u8(1..250))));
        }
        let ports = vec![
            ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                target: if self.chance(2) {
                    PortRef::Name("http".into())
                } else {
                    PortRef::Number(8080)
                },
                node_port: self.chance(3).then(|| *self.of(&NODE_PORTS)),
            },
            ServicePort {
                name: "dns".into(),
                protocol: Protocol::Udp,
                port: 53,
                target: PortRef::Number(53),
                node_port: None,
            },
        ];
        let selector = (!self.chance(3)).then(|| self.selector());
        if selector.is_none() || self.chance(4) {
            self.put_slice(mesh, &name);
        } else {
            mesh.endpoint_slices.remove(&name);
        }
        let service = Service {
            name: name.clone(),
            labels: self.labels(),
            selector,
            addresses,
            external,
            ports,
            affinity_seconds: self.chance(4).then_some(60),
            internal_local: self.chance(5),
            publish_not_ready: self.chance(6),
            origin: origin("Service", &name, "spec"),
        };
        mesh.services.insert(name, service);
    }

    fn put_slice(&mut self, mesh: &mut Mesh, name: &Name) {
        let endpoints = (0..self.rng.usize(0..4))
            .map(|_| SliceEndpoint {
                addresses: vec![self.address(mesh)],
                ready: !self.chance(4),
                serving: !self.chance(4),
                terminating: self.chance(4),
                node: self.chance(2).then(|| (*self.of(&NODES)).into()),
                zones: (0..self.rng.usize(0..3)).map(|_| (*self.of(&ZONES)).into()).collect(),
                nodes: (0..self.rng.usize(0..3)).map(|_| (*self.of(&NODES)).into()).collect(),
            })
            .collect();
        let slice = EndpointSlice {
            name: name.clone(),
            service: Some(name.name.clone()),
            ports: BTreeMap::from([
                ("http".into(), (Protocol::Tcp, 8080)),
                ("dns".into(), (Protocol::Udp, 53)),
            ]),
            endpoints,
        };
        mesh.endpoint_slices.insert(name.clone(), slice);
    }

    pub fn put_policy(&mut self, mesh: &mut Mesh) {
        let dialect = *self.of(&[Dialect::Kubernetes, Dialect::Cilium]);
        let kind = match dialect {
            Dialect::Kubernetes => "NetworkPolicy",
            Dialect::Cilium => "CiliumNetworkPolicy",
        };
        let name = Name {
            namespace: (*self.of(&NAMESPACES)).into(),
            name: format!("policy-{}", self.rng.u8(0..12)).into(),
        };
        let specs = if dialect == Dialect::Cilium && self.chance(4) { 2 } else { 1 };
        let policies = (0..specs)
            .map(|spec| {
                let rules = (0..self.rng.usize(0..5))
                    .map(|index| self.rule(dialect, kind, &name, &format!("spec{spec}.{index}")))
                    .collect();
                Arc::new(Policy {
                    origin: origin(kind, &name, &format!("spec{spec}")),
                    subject: self.workloads(),
                    isolates_ingress: self.chance(2),
                    isolates_egress: self.chance(2),
                    dialect,
                    rules,
                })
            })
            .collect();
        mesh.policies.insert(ObjectRef { kind: kind.into(), name }, policies);
    }

    fn rule(&mut self, dialect: Dialect, kind: &str, name: &Name, field: &str) -> Rule {
        let direction = *self.of(&[Direction::Ingress, Direction::Egress]);
        let deny = dialect == Dialect::Cilium && self.chance(3);
        let peers = (!self.chance(4))
            .then(|| (0..self.rng.usize(0..4)).map(|_| self.peer(dialect, direction)).collect());
        let ports = (!self.chance(3))
            .then(|| (0..self.rng.usize(0..4)).map(|_| self.port_match()).collect());
        Rule {
            origin: origin(kind, name, field),
            direction,
            effect: if deny { Effect::Deny } else { Effect::Allow },
            peers,
            ports,
            needs: self.needs(),
        }
    }

    fn peer(&mut self, dialect: Dialect, direction: Direction) -> Peer {
        match self.rng.u8(0..if dialect == Dialect::Cilium { 7 } else { 4 }) {
            0..=1 => Peer::Workloads(self.workloads()),
            2..=3 => Peer::Cidr {
                cidr: self.block(),
                except: (0..self.rng.usize(0..3)).map(|_| self.block()).collect(),
            },
            4 if direction == Direction::Egress => Peer::Services {
                namespace: self.chance(2).then(|| (*self.of(&NAMESPACES)).into()),
                name: self.chance(2).then(|| (*self.of(&["web", "db"])).into()),
                labels: self.selector(),
            },
            5 => Peer::Identity(self.principal()),
            _ => Peer::Entity(*self.of(&[
                Entity::All,
                Entity::World,
                Entity::WorldIpv4,
                Entity::WorldIpv6,
                Entity::Cluster,
                Entity::Host,
                Entity::RemoteNode,
                Entity::KubeApiserver,
                Entity::Unmanaged,
                Entity::None,
            ])),
        }
    }

    fn port_match(&mut self) -> PortMatch {
        let protocol = match self.rng.u8(0..8) {
            0 => None,
            1 => Some(Protocol::Icmp),
            2 => Some(Protocol::Sctp),
            3..=4 => Some(Protocol::Udp),
            _ => Some(Protocol::Tcp),
        };
        let ports = match self.rng.u8(0..4) {
            0 => Ports::All,
            1 => Ports::Named((*self.of(&PORT_NAMES)).into()),
            2 => {
                let port = *self.of(&PORTS);
                Ports::Range(port, port)
            }
            _ => {
                let (one, other) = (*self.of(&PORTS), *self.of(&PORTS));
                Ports::Range(one.min(other), one.max(other))
            }
        };
        PortMatch { protocol, ports }
    }

    pub fn put_authorization(&mut self, mesh: &mut Mesh) {
        let kind = "AuthorizationPolicy";
        let name = Name {
            namespace: (*self.of(&NAMESPACES)).into(),
            name: format!("policy-{}", self.rng.u8(0..12)).into(),
        };
        let rules = (0..self.rng.usize(0..4))
            .map(|index| AuthorizationRule {
                origin: origin(kind, &name, &format!("spec.rules[{index}]")),
                from: (0..self.few()).map(|_| self.source()).collect(),
                to: (0..self.few()).map(|_| self.operation()).collect(),
                when: (0..self.few()).map(|_| self.condition()).collect(),
                needs: self.needs(),
            })
            .collect();
        let policy = AuthorizationPolicy {
            origin: origin(kind, &name, "spec"),
            scope: self.scope(&name.namespace),
            action: *self.of(&[
                Action::Allow,
                Action::Allow,
                Action::Allow,
                Action::Deny,
                Action::Deny,
                Action::Audit,
                Action::Custom,
            ]),
            rules,
        };
        mesh.authorization.insert(ObjectRef { kind: kind.into(), name }, Arc::new(policy));
    }

    pub fn put_peer_authentication(&mut self, mesh: &mut Mesh) {
        let kind = "PeerAuthentication";
        let name = Name {
            namespace: (*self.of(&NAMESPACES)).into(),
            name: format!("policy-{}", self.rng.u8(0..6)).into(),
        };
        let mode = |generator: &mut Self| {
            *generator.of(&[
                None,
                Some(MtlsMode::Strict),
                Some(MtlsMode::Permissive),
                Some(MtlsMode::Disable),
            ])
        };
        let ports = (0..self.few())
            .map(|index| {
                let field = origin(kind, &name, &format!("spec.portLevelMtls[{index}]"));
                (*self.of(&PORTS), (mode(self), field))
            })
            .collect();
        let policy = PeerAuthentication {
            origin: origin(kind, &name, "spec"),
            scope: self.scope(&name.namespace),
            mode: mode(self),
            ports,
        };
        mesh.peer_authentication.insert(ObjectRef { kind: kind.into(), name }, Arc::new(policy));
    }

    fn scope(&mut self, namespace: &Arc<str>) -> Scope {
        match self.rng.u8(0..8) {
            0 => Scope::Mesh,
            1 => Scope::Selected(self.selector()),
            2..=3 => Scope::Namespace(namespace.clone()),
            4..=5 => Scope::Workload(namespace.clone(), self.selector()),
            6 => Scope::Services(namespace.clone(), vec!["web".into(), "kubernetes".into()]),
            _ => Scope::Nothing,
        }
    }

    fn source(&mut self) -> Source {
        let mut source = Source { needs_http: self.chance(6), ..Source::default() };
        for _ in 0..self.rng.usize(1..3) {
            match self.rng.u8(0..8) {
                0 => source.principals.push(self.principal()),
                1 => source.not_principals.push(self.principal()),
                2 => source.namespaces.push(self.namespace_match()),
                3 => source.not_namespaces.push(self.namespace_match()),
                4 => source.service_accounts.push(self.account()),
                5 => source.not_service_accounts.push(self.account()),
                6 => source.ip_blocks.push(self.block()),
                _ => source.not_ip_blocks.push(self.block()),
            }
        }
        source
    }

    fn operation(&mut self) -> Operation {
        let mut operation = Operation { needs_http: self.chance(6), ..Operation::default() };
        for _ in 0..self.rng.usize(0..3) {
            let port = *self.of(&PORTS);
            if self.chance(3) {
                operation.not_ports.push(port);
            } else {
                operation.ports.push(port);
            }
        }
        operation
    }

    fn condition(&mut self) -> Condition {
        let blocks =
            |generator: &mut Self| (0..generator.few()).map(|_| generator.block()).collect();
        match self.rng.u8(0..5) {
            0 => Condition::SourceIp { values: blocks(self), not_values: blocks(self) },
            1 => Condition::SourceNamespace {
                values: (0..self.few()).map(|_| self.namespace_match()).collect(),
                not_values: (0..self.few()).map(|_| self.namespace_match()).collect(),
            },
            2 => Condition::SourcePrincipal {
                values: (0..self.few()).map(|_| self.principal()).collect(),
                not_values: (0..self.few()).map(|_| self.principal()).collect(),
            },
            3 => Condition::DestinationIp { values: blocks(self), not_values: blocks(self) },
            _ => Condition::DestinationPort {
                values: (0..self.few()).map(|_| *self.of(&PORTS)).collect(),
                not_values: (0..self.few()).map(|_| *self.of(&PORTS)).collect(),
            },
        }
    }

    fn principal(&mut self) -> StringMatch {
        let namespace = *self.of(&NAMESPACES);
        let account = *self.of(&ACCOUNTS);
        match self.rng.u8(0..4) {
            0 => StringMatch::Prefix(format!("cluster.local/ns/{namespace}/").into()),
            1 => StringMatch::Suffix(format!("/sa/{account}").into()),
            2 => StringMatch::Present,
            _ => StringMatch::Exact(format!("cluster.local/ns/{namespace}/sa/{account}").into()),
        }
    }

    fn namespace_match(&mut self) -> StringMatch {
        let namespace = *self.of(&NAMESPACES);
        match self.rng.u8(0..4) {
            0 => StringMatch::Prefix(namespace[..2].into()),
            1 => StringMatch::Suffix(namespace[2..].into()),
            2 => StringMatch::Present,
            _ => StringMatch::Exact(namespace.into()),
        }
    }

    fn account(&mut self) -> (Arc<str>, Arc<str>) {
        ((*self.of(&NAMESPACES)).into(), (*self.of(&ACCOUNTS)).into())
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
