//! What the policies that act on this node's pods read about peers. Peers are told apart by
//! nothing else, so that there are few classes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::blocks::{Block, Blocks};
use crate::mesh::{
    AuthorizationPolicy, Condition, Dialect, Direction, Entity, Peer, Policy, Ports, Rule,
    Selector, Source, Workloads,
};

/// `Peer::Services`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ServicesPeer {
    pub(super) namespace: Option<Arc<str>>,
    pub(super) name: Option<Arc<str>>,
    pub(super) labels: Selector,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vocabulary {
    /// Keys of labels of namespaces.
    pub(super) namespace_labels: BTreeSet<Arc<str>>,
    /// Keys of labels of pods.
    pub(super) labels: BTreeSet<Arc<str>>,
    /// Names of ports of peers.
    pub(super) port_names: BTreeSet<Arc<str>>,
    /// Blocks that are matched against every address.
    pub(super) blocks: Blocks,
    /// Blocks that are matched against what is neither pod nor node.
    pub(super) world_blocks: Blocks,
    pub(super) services: BTreeSet<ServicesPeer>,
    pub(super) account_label: bool,
    /// Trust domain, namespace and service account.
    pub(super) identity: bool,
    pub(super) enrolled: bool,
    pub(super) apiserver: bool,
    /// Whether a pod's address is IPv4 or IPv6.
    pub(super) family: bool,
}

impl Vocabulary {
    pub(super) fn includes(&self, other: &Self) -> bool {
        let mut both = self.clone();
        both.extend(other);
        both == *self
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.namespace_labels.extend(other.namespace_labels.iter().cloned());
        self.labels.extend(other.labels.iter().cloned());
        self.port_names.extend(other.port_names.iter().cloned());
        self.blocks.extend(&other.blocks);
        self.world_blocks.extend(&other.world_blocks);
        self.services.extend(other.services.iter().cloned());
        self.account_label |= other.account_label;
        self.identity |= other.identity;
        self.enrolled |= other.enrolled;
        self.apiserver |= other.apiserver;
        self.family |= other.family;
    }

    pub(super) fn all_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.union(&self.world_blocks)
    }

    pub(super) fn read_policy(&mut self, policy: &Policy, direction: Direction) {
        for rule in policy.rules.iter().filter(|rule| rule.direction == direction) {
            self.read_rule(rule, policy.dialect);
        }
    }

    pub(super) fn read_authorization(&mut self, policy: &AuthorizationPolicy) {
        for rule in &policy.rules {
            for source in &rule.from {
                self.read_source(source);
            }
            for condition in &rule.when {
                self.read_condition(condition);
            }
        }
    }

    fn read_rule(&mut self, rule: &Rule, dialect: Dialect) {
        for peer in rule.peers.iter().flatten() {
            match peer {
                Peer::Workloads(workloads) => self.read_workloads(workloads),
                Peer::Cidr { cidr, except } => {
                    let blocks = match dialect {
                        Dialect::Kubernetes => &mut self.blocks,
                        Dialect::Cilium => &mut self.world_blocks,
                    };
                    blocks.extend(std::iter::once(cidr).chain(except).map(Block::from));
                }
                Peer::Entity(Entity::Unmanaged) => self.enrolled = true,
                Peer::Entity(Entity::KubeApiserver) => self.apiserver = true,
                Peer::Entity(_) => {}
                Peer::Identity(_) => {
                    self.identity = true;
                    self.enrolled |= rule.direction == Direction::Egress;
                }
                Peer::Services { namespace, name, labels } => {
                    self.services.insert(ServicesPeer {
                        namespace: namespace.clone(),
                        name: name.clone(),
                        labels: labels.clone(),
                    });
                }
            }
        }
        if rule.direction == Direction::Egress {
            for port in rule.ports.iter().flatten() {
                if let Ports::Named(name) = &port.ports {
                    self.port_names.insert(name.clone());
                }
            }
        }
    }

    fn read_workloads(&mut self, workloads: &Workloads) {
        let keys = |selector: &Selector| -> Vec<Arc<str>> {
            selector.requirements.iter().map(|requirement| requirement.key.clone()).collect()
        };
        self.namespace_labels.extend(keys(&workloads.namespace));
        self.labels.extend(keys(&workloads.pod));
        self.account_label |= !workloads.service_account.requirements.is_empty();
    }

    fn read_source(&mut self, source: &Source) {
        let blocks = source.ip_blocks.iter().chain(&source.not_ip_blocks);
        self.blocks.extend(blocks.map(Block::from));
        self.identity |= !(source.principals.is_empty()
            && source.not_principals.is_empty()
            && source.namespaces.is_empty()
            && source.not_namespaces.is_empty()
            && source.service_accounts.is_empty()
            && source.not_service_accounts.is_empty());
    }

    fn read_condition(&mut self, condition: &Condition) {
        match condition {
            Condition::SourceIp { values, not_values } => {
                self.blocks.extend(values.iter().chain(not_values).map(Block::from));
            }
            Condition::SourceNamespace { .. } | Condition::SourcePrincipal { .. } => {
                self.identity = true;
            }
            // The destination's address is the one of the source's family.
            Condition::DestinationIp { .. } => self.family = true,
            Condition::DestinationPort { .. } => {}
        }
    }
}
