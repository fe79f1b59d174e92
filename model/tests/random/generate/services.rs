//! Services by chance.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::mesh::*;

use super::{Generator, NODES, ZONES, address, origin};

const NODE_PORTS: [u16; 2] = [30_080, 30_081];

impl Generator {
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
        mesh.services.insert(name, Arc::new(service));
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
        mesh.endpoint_slices.insert(name.clone(), Arc::new(slice));
    }
}
