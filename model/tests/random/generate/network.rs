//! Policies of L3 and L4 by chance.

use std::sync::Arc;

use weft_model::mesh::*;

use super::{Generator, NAMESPACES, PORT_NAMES, PORTS, origin};

impl Generator {
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
}
