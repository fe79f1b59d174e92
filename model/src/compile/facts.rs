//! What policies can know of a peer: the content of a class.

use std::sync::Arc;

use super::blocks::Block;
use super::vocabulary::ServicesPeer;
use crate::mesh::{
    Condition, Dialect, Direction, Effect, Entity, Labels, NamedPort, Peer, Rule,
    SERVICE_ACCOUNT_LABEL, Selector, Source, StringMatch,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Pod,
    OwnNode,
    OtherNode,
    World,
}

/// All that is read about a peer, and nothing that is not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    /// Of pods and nodes only if it is read.
    pub(super) v4: Option<bool>,
    pub(super) pod: Option<PodFacts>,
    /// Those that contain it, in order.
    pub(super) blocks: Vec<Block>,
    /// Those that it is an endpoint of, in order.
    pub(super) services: Vec<ServicesPeer>,
    pub(super) apiserver: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodFacts {
    pub(super) namespace_labels: Arc<Labels>,
    pub(super) labels: Labels,
    /// The label `serviceaccount`.
    pub(super) account: Labels,
    pub(super) identity: Option<Identity>,
    pub(super) enrolled: Option<bool>,
    pub(super) named_ports: Vec<NamedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) trust_domain: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) service_account: Arc<str>,
}

/// Whose identity a rule takes to be the one of the pod that has the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    Nobody,
    /// Of pods in the mesh.
    Meshed,
    Everybody,
}

impl Belief {
    /// Of a rule, about a peer whose identity is proven or not.
    pub(super) fn of(rule: &Rule, proven: bool) -> Self {
        match (rule.effect, rule.direction) {
            (Effect::Deny, _) => Self::Everybody,
            (Effect::Allow, Direction::Egress) => Self::Meshed,
            (Effect::Allow, Direction::Ingress) if proven => Self::Everybody,
            (Effect::Allow, Direction::Ingress) => Self::Nobody,
        }
    }
}

impl PodFacts {
    /// The labels that Cilium gives a pod from its service account.
    pub(super) fn account_label(name: &Arc<str>) -> Labels {
        Labels::from([(SERVICE_ACCOUNT_LABEL.into(), name.clone())])
    }
}

impl Facts {
    /// Whether a rule's peer is meant.
    pub(super) fn is(&self, peer: &Peer, dialect: Dialect, belief: Belief) -> bool {
        match peer {
            Peer::Workloads(workloads) => self.pod.as_ref().is_some_and(|pod| {
                workloads.namespace.matches(&pod.namespace_labels)
                    && workloads.pod.matches(&pod.labels)
                    && is_any_or(&workloads.service_account, &pod.account)
            }),
            Peer::Cidr { cidr, except } => {
                (dialect == Dialect::Kubernetes || self.kind == Kind::World)
                    && self.is_in(&cidr.into())
                    && !except.iter().any(|out| self.is_in(&out.into()))
            }
            Peer::Entity(entity) => self.is_entity(*entity),
            Peer::Services { namespace, name, labels } => self.services.iter().any(|peer| {
                peer.namespace == *namespace && peer.name == *name && peer.labels == *labels
            }),
            Peer::Identity(wanted) => self.pod.as_ref().is_some_and(|pod| {
                let is_believed = match belief {
                    Belief::Nobody => false,
                    Belief::Meshed => pod.enrolled == Some(true),
                    Belief::Everybody => true,
                };
                let principal = pod.identity.as_ref().filter(|_| is_believed);
                wanted.is(principal.map(Identity::principal).as_deref())
            }),
        }
    }

    /// Whether a source of an AuthorizationPolicy is meant.
    pub(super) fn is_source(&self, source: &Source, proven: bool) -> bool {
        let identity = self.identity(proven);
        let principal = identity.map(Identity::principal);
        let namespace = identity.map(|identity| &*identity.namespace);
        let accounts = |accounts: &[(Arc<str>, Arc<str>)]| {
            accounts.iter().any(|(namespace, name)| {
                identity.is_some_and(|identity| {
                    identity.namespace == *namespace && identity.service_account == *name
                })
            })
        };
        one_of(&source.principals, &source.not_principals, |m| m.is(principal.as_deref()))
            && one_of(&source.namespaces, &source.not_namespaces, |m| m.is(namespace))
            && (source.service_accounts.is_empty() || accounts(&source.service_accounts))
            && !accounts(&source.not_service_accounts)
            && one_of(&source.ip_blocks, &source.not_ip_blocks, |b| self.is_in(&b.into()))
    }

    /// Whether a condition holds, as far as it speaks of the source.
    pub(super) fn meets(&self, condition: &Condition, proven: bool) -> bool {
        let identity = self.identity(proven);
        match condition {
            Condition::SourceIp { values, not_values } => {
                one_of(values, not_values, |block| self.is_in(&block.into()))
            }
            Condition::SourceNamespace { values, not_values } => {
                let namespace = identity.map(|identity| &*identity.namespace);
                one_of(values, not_values, |m| m.is(namespace))
            }
            Condition::SourcePrincipal { values, not_values } => {
                let principal = identity.map(Identity::principal);
                one_of(values, not_values, |m| m.is(principal.as_deref()))
            }
            Condition::DestinationIp { .. } | Condition::DestinationPort { .. } => true,
        }
    }

    fn identity(&self, proven: bool) -> Option<&Identity> {
        self.pod.as_ref().filter(|_| proven)?.identity.as_ref()
    }

    fn is_in(&self, block: &Block) -> bool {
        self.blocks.binary_search(block).is_ok()
    }

    fn is_entity(&self, entity: Entity) -> bool {
        match entity {
            Entity::All => true,
            Entity::World => self.kind == Kind::World,
            Entity::WorldIpv4 => self.kind == Kind::World && self.v4 == Some(true),
            Entity::WorldIpv6 => self.kind == Kind::World && self.v4 == Some(false),
            Entity::Cluster => self.kind != Kind::World,
            Entity::Host => self.kind == Kind::OwnNode,
            Entity::RemoteNode => self.kind == Kind::OtherNode,
            Entity::KubeApiserver => self.apiserver,
            Entity::Unmanaged => self.pod.as_ref().is_some_and(|pod| pod.enrolled == Some(false)),
            Entity::None => false,
        }
    }
}

impl Identity {
    fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl StringMatch {
    fn is(&self, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.strip_prefix(&**prefix).is_some(),
            Self::Suffix(suffix) => text.strip_suffix(&**suffix).is_some(),
            Self::Present => !text.is_empty(),
        }
    }
}

/// A value must be among `values` if there are any, and not among `not_values`.
pub(super) fn one_of<T>(values: &[T], not_values: &[T], is: impl Fn(&T) -> bool) -> bool {
    let wanted = values.is_empty() || values.iter().any(&is);
    wanted && !not_values.iter().any(is)
}

fn is_any_or(selector: &Selector, labels: &Labels) -> bool {
    selector.requirements.is_empty() || selector.matches(labels)
}
