//! The pods of the node, and which policies act on them.

use std::net::IpAddr;
use std::sync::Arc;

use super::library::{Library, Version};
use super::mtls::{Modes, PeerAuthentications};
use super::subject::SubjectKey;
use super::vocabulary::Vocabulary;
use crate::mesh::{
    Action, AuthorizationPolicy, Condition, Direction, Effect, Labels, Mesh, MtlsMode, Name, Pod,
    Policy, Ports, SERVICE_ACCOUNT_LABEL, Scope, Workloads,
};

/// All policies, with their numbers, in order.
pub(super) struct Policies<'a> {
    pub(super) mesh: &'a Mesh,
    pub(super) network: Vec<(Arc<Policy>, Version)>,
    pub(super) authorization: Vec<(Arc<AuthorizationPolicy>, Version)>,
    pub(super) mtls: PeerAuthentications<'a>,
}

impl<'a> Policies<'a> {
    pub(super) fn of(mesh: &'a Mesh, library: &mut Library) -> Self {
        let (network, mut authorization) = library.read(mesh);
        authorization.retain(|(policy, _)| policy.action != Action::Audit);
        Self { mesh, network, authorization, mtls: PeerAuthentications::of(mesh) }
    }

    /// The subjects that a pod is, ingress and egress; none where nothing restricts it.
    pub(super) fn subjects(&self, pod: &Pod) -> [Option<SubjectKey>; 2] {
        if !self.mesh.is_enrolled(pod) {
            return [None, None];
        }
        let facts = SubjectFacts {
            pod,
            namespace: self.mesh.namespace_labels(&pod.name.namespace),
            account: Labels::from([(SERVICE_ACCOUNT_LABEL.into(), pod.service_account.clone())]),
        };
        let acting: Vec<&(Arc<Policy>, Version)> =
            self.network.iter().filter(|(policy, _)| facts.is(&policy.subject)).collect();
        [self.ingress(pod, &acting), egress(&acting)]
    }

    fn ingress(&self, pod: &Pod, acting: &[&(Arc<Policy>, Version)]) -> Option<SubjectKey> {
        let speaking = speaking(acting, Direction::Ingress);
        let authorization: Vec<_> = self
            .authorization
            .iter()
            .filter(|(policy, _)| self.is_in_scope(&policy.scope, pod))
            .collect();
        let modes = self.mtls.modes(pod);
        let strict = modes.any_is(MtlsMode::Strict);
        if !restricts(&speaking, Direction::Ingress) && authorization.is_empty() && !strict {
            return None;
        }
        let mut named_ports = Vec::new();
        if speaking.iter().any(|(policy, _)| names_ports(policy, Direction::Ingress)) {
            named_ports.extend(pod.named_ports.iter().cloned());
            named_ports.sort();
            named_ports.dedup();
        }
        let mut addresses = Vec::new();
        if authorization.iter().any(|(policy, _)| reads_destination(policy)) {
            addresses.extend(pod.addresses.iter().map(IpAddr::to_canonical));
        }
        Some(SubjectKey {
            direction: Direction::Ingress,
            policies: speaking.iter().map(|(_, version)| *version).collect(),
            authorizations: authorization.iter().map(|(_, version)| *version).collect(),
            mtls: strict.then_some(modes),
            named_ports,
            addresses,
            peers_named_ports: false,
        })
    }

    fn is_in_scope(&self, scope: &Scope, pod: &Pod) -> bool {
        match scope {
            Scope::Mesh => true,
            Scope::Selected(selector) => selector.matches(&pod.labels),
            Scope::Namespace(namespace) => *namespace == pod.name.namespace,
            Scope::Workload(namespace, selector) => {
                *namespace == pod.name.namespace && selector.matches(&pod.labels)
            }
            Scope::Services(namespace, services) => services.iter().any(|service| {
                let name = Name { namespace: namespace.clone(), name: service.clone() };
                let service = self.mesh.services.get(&name);
                service.is_some_and(|service| self.mesh.is_behind(pod, service))
            }),
            Scope::Nothing => false,
        }
    }

    /// Marks the policies of a subject as acting, and says what they read.
    pub(super) fn note(
        &self,
        key: &SubjectKey,
        library: &mut Library,
        needs: &mut Vocabulary,
        epoch: u64,
    ) {
        // Both lists are in the order of all.
        let mut wanted = key.policies.iter().peekable();
        for (policy, version) in &self.network {
            if wanted.next_if_eq(&version).is_some() {
                library.use_policy(policy, *version, epoch);
                needs.read_policy(policy, key.direction);
            }
        }
        let mut wanted = key.authorizations.iter().peekable();
        for (policy, version) in &self.authorization {
            if wanted.next_if_eq(&version).is_some() {
                library.use_authorization(policy, *version, epoch);
                needs.read_authorization(policy);
            }
        }
    }
}

struct SubjectFacts<'a> {
    pod: &'a Pod,
    namespace: Labels,
    account: Labels,
}

impl SubjectFacts<'_> {
    fn is(&self, workloads: &Workloads) -> bool {
        workloads.pod.matches(&self.pod.labels)
            && workloads.namespace.matches(&self.namespace)
            && workloads.service_account.matches(&self.account)
    }
}

fn egress(acting: &[&(Arc<Policy>, Version)]) -> Option<SubjectKey> {
    let speaking = speaking(acting, Direction::Egress);
    restricts(&speaking, Direction::Egress).then(|| SubjectKey {
        direction: Direction::Egress,
        policies: speaking.iter().map(|(_, version)| *version).collect(),
        authorizations: Vec::new(),
        mtls: None::<Modes>,
        named_ports: Vec::new(),
        addresses: Vec::new(),
        peers_named_ports: speaking
            .iter()
            .any(|(policy, _)| names_ports(policy, Direction::Egress)),
    })
}

type Numbered<'a> = &'a (Arc<Policy>, Version);

/// Those that isolate in a direction or have rules for it.
fn speaking<'a>(acting: &[Numbered<'a>], direction: Direction) -> Vec<Numbered<'a>> {
    let speaks = |policy: &Policy| {
        isolates(policy, direction) || policy.rules.iter().any(|rule| rule.direction == direction)
    };
    acting.iter().copied().filter(|(policy, _)| speaks(policy)).collect()
}

fn restricts(policies: &[Numbered<'_>], direction: Direction) -> bool {
    policies.iter().any(|(policy, _)| {
        let mut rules = policy.rules.iter();
        isolates(policy, direction)
            || rules.any(|rule| rule.direction == direction && rule.effect == Effect::Deny)
    })
}

fn isolates(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.isolates_ingress,
        Direction::Egress => policy.isolates_egress,
    }
}

fn names_ports(policy: &Policy, direction: Direction) -> bool {
    let rules = policy.rules.iter().filter(|rule| rule.direction == direction);
    rules
        .flat_map(|rule| rule.ports.iter().flatten())
        .any(|port| matches!(port.ports, Ports::Named(_)))
}

fn reads_destination(policy: &AuthorizationPolicy) -> bool {
    let conditions = policy.rules.iter().flat_map(|rule| &rule.when);
    conditions.into_iter().any(|condition| matches!(condition, Condition::DestinationIp { .. }))
}
