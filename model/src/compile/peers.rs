//! Every address that is known by itself, and what it is.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::blocks::{Block, BlockSet};
use super::facts::{Facts, Identity, Kind, PodFacts};
use super::vocabulary::{ServicesPeer, Vocabulary};
use crate::mesh::{Labels, Mesh, Name, Pod};

/// Addresses of pods and nodes. Nodes go first, then the first by name.
#[derive(Debug)]
pub(super) struct Owners<'a> {
    pub(super) nodes: BTreeMap<IpAddr, &'a Arc<str>>,
    pub(super) pods: BTreeMap<IpAddr, &'a Arc<Pod>>,
}

impl<'a> Owners<'a> {
    pub(super) fn of(mesh: &'a Mesh) -> Self {
        let mut nodes = BTreeMap::new();
        for node in mesh.nodes.values() {
            for address in &node.addresses {
                nodes.entry(address.to_canonical()).or_insert(&node.name);
            }
        }
        let of_hosts = mesh.pods.values().filter(|pod| pod.host_network && !pod.finished);
        for pod in of_hosts {
            for address in &pod.addresses {
                nodes.entry(address.to_canonical()).or_insert(&pod.node);
            }
        }
        let mut pods = BTreeMap::new();
        for pod in mesh.pods.values().filter(|pod| pod.is_own_peer()) {
            for address in &pod.addresses {
                let address = address.to_canonical();
                if !nodes.contains_key(&address) {
                    pods.entry(address).or_insert(pod);
                }
            }
        }
        Self { nodes, pods }
    }

    /// Whether it is a pod's or a node's.
    pub(super) fn own(&self, address: &IpAddr) -> bool {
        self.nodes.contains_key(address) || self.pods.contains_key(address)
    }
}

/// Says what is read of every peer.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    mesh: &'a Mesh,
    node: &'a str,
    vocabulary: &'a Vocabulary,
    blocks: BlockSet,
    world_blocks: BlockSet,
    services: BTreeMap<IpAddr, Vec<ServicesPeer>>,
    apiserver: Vec<IpAddr>,
    namespaces: HashMap<Arc<str>, Arc<Labels>>,
}

impl<'a> Reader<'a> {
    pub(super) fn of(mesh: &'a Mesh, node: &'a str, vocabulary: &'a Vocabulary) -> Self {
        let mut services: BTreeMap<IpAddr, Vec<ServicesPeer>> = BTreeMap::new();
        for peer in &vocabulary.services {
            let meant = mesh.services.values().filter(|service| {
                peer.namespace.as_ref().is_none_or(|own| *own == service.name.namespace)
                    && peer.name.as_ref().is_none_or(|own| *own == service.name.name)
                    && peer.labels.matches(&service.labels)
            });
            let mut addresses: Vec<IpAddr> =
                meant.flat_map(|service| addresses_behind(mesh, &service.name)).collect();
            addresses.sort_unstable();
            addresses.dedup();
            for address in addresses {
                services.entry(address).or_default().push(peer.clone());
            }
        }
        let mut apiserver = Vec::new();
        if vocabulary.apiserver {
            let name = Name { namespace: "default".into(), name: "kubernetes".into() };
            apiserver = addresses_behind(mesh, &name);
        }
        Self {
            mesh,
            node,
            vocabulary,
            blocks: BlockSet::of(&vocabulary.blocks),
            world_blocks: BlockSet::of(vocabulary.all_blocks()),
            services,
            apiserver,
            namespaces: HashMap::new(),
        }
    }

    /// Addresses outside the cluster that are endpoints of services that policies name.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.services.keys().chain(&self.apiserver).copied()
    }

    /// Boundaries at which what is read of the world changes.
    pub(super) fn boundaries(&self) -> impl Iterator<Item = Block> {
        [Block::ALL_V4, Block::ALL_V6].into_iter().chain(self.vocabulary.all_blocks().copied())
    }

    /// Of all addresses of the world for which this is the narrowest boundary.
    pub(super) fn boundary(&self, block: &Block) -> Facts {
        Facts {
            kind: Kind::World,
            v4: Some(block.v4),
            pod: None,
            blocks: self.world_blocks.around(block),
            services: Vec::new(),
            apiserver: false,
        }
    }

    /// Of one address of the world.
    pub(super) fn world(&self, address: IpAddr) -> Facts {
        Facts {
            v4: Some(address.is_ipv4()),
            blocks: self.world_blocks.containing(address),
            ..self.facts(Kind::World, address)
        }
    }

    pub(super) fn node(&self, name: &str, address: IpAddr) -> Facts {
        let kind = if name == self.node { Kind::OwnNode } else { Kind::OtherNode };
        self.facts(kind, address)
    }

    pub(super) fn pod(&mut self, pod: &Pod, address: IpAddr) -> Facts {
        let vocabulary = self.vocabulary;
        let identity = vocabulary.identity.then(|| Identity {
            trust_domain: self.mesh.settings.trust_domain.clone(),
            namespace: pod.name.namespace.clone(),
            service_account: pod.service_account.clone(),
        });
        let account = if vocabulary.account_label {
            PodFacts::account_label(&pod.service_account)
        } else {
            Labels::new()
        };
        let mut named_ports = Vec::new();
        if !vocabulary.port_names.is_empty() {
            named_ports.extend(pod.named_ports.iter().cloned());
            named_ports.retain(|named| vocabulary.port_names.contains(&named.name));
            named_ports.sort();
            named_ports.dedup();
        }
        let facts = PodFacts {
            namespace_labels: self.namespace(&pod.name.namespace),
            labels: vocabulary
                .labels
                .iter()
                .filter_map(|key| pod.labels.get_key_value(key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            account,
            identity,
            enrolled: vocabulary.enrolled.then(|| self.mesh.is_enrolled(pod)),
            named_ports,
        };
        Facts { pod: Some(facts), ..self.facts(Kind::Pod, address) }
    }

    fn namespace(&mut self, name: &Arc<str>) -> Arc<Labels> {
        if let Some(known) = self.namespaces.get(name) {
            return known.clone();
        }
        let mut labels = self.mesh.namespace_labels(name);
        labels.retain(|key, _| self.vocabulary.namespace_labels.contains(key));
        let labels = Arc::new(labels);
        self.namespaces.insert(name.clone(), labels.clone());
        labels
    }

    fn facts(&self, kind: Kind, address: IpAddr) -> Facts {
        Facts {
            kind,
            v4: self.vocabulary.family.then_some(address.is_ipv4()),
            pod: None,
            blocks: self.blocks.containing(address),
            services: self.services.get(&address).cloned().unwrap_or_default(),
            apiserver: self.apiserver.contains(&address),
        }
    }
}

/// Addresses of the endpoints of a service, at all its ports.
fn addresses_behind(mesh: &Mesh, service: &Name) -> Vec<IpAddr> {
    let Some(service) = mesh.services.get(service) else { return Vec::new() };
    let of_port = |port| mesh.endpoints(service, port);
    service.ports.iter().flat_map(of_port).map(|endpoint| endpoint.ip().to_canonical()).collect()
}
