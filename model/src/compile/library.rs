//! The policies that act on this node's pods, each with the classes that its rules match. A
//! policy is known by a number that changes with its content.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::bits::Bits;
use super::classes::{Classes, Slots};
use super::facts::Belief;
use super::ids::{Epoch, Ids, Interned};
use crate::mesh::{AuthorizationPolicy, Mesh, ObjectRef, Origin, Policy};

/// Number of one content of one policy.
pub(super) type Version = u64;

#[derive(Debug, Default)]
pub(super) struct Library {
    last: Version,
    policy_versions: BTreeMap<ObjectRef, Vec<(Arc<Policy>, Version)>>,
    authorization_versions: BTreeMap<ObjectRef, (Arc<AuthorizationPolicy>, Version)>,
    policies: HashMap<Version, ActingPolicy>,
    authorizations: HashMap<Version, ActingAuthorization>,
}

#[derive(Debug)]
pub(super) struct ActingPolicy {
    pub(super) policy: Arc<Policy>,
    /// Id of its origin.
    pub(super) origin: u32,
    /// As in the policy.
    pub(super) rules: Vec<ActingNetworkRule>,
    seen: Epoch,
}

#[derive(Debug, Default)]
pub(super) struct ActingNetworkRule {
    pub(super) id: u32,
    /// Classes whose peers it means where their identity is not proven.
    unproven: Bits,
    /// The same where it is, if that makes a difference to the rule.
    proven: Option<Bits>,
}

impl ActingNetworkRule {
    /// Classes whose peers it means.
    pub(super) fn peers(&self, proven: bool) -> &Bits {
        self.proven.as_ref().filter(|_| proven).unwrap_or(&self.unproven)
    }
}

#[derive(Debug)]
pub(super) struct ActingAuthorization {
    pub(super) policy: Arc<AuthorizationPolicy>,
    pub(super) origin: u32,
    pub(super) rules: Vec<ActingRule>,
    seen: Epoch,
}

#[derive(Debug)]
pub(super) struct ActingRule {
    pub(super) id: u32,
    /// Classes whose sources it means, first for an unproven, then for a proven peer.
    pub(super) sources: [Sources; 2],
}

#[derive(Debug, Default)]
pub(super) struct Sources {
    /// By a source that needs no more than L4.
    pub(super) l4: Bits,
    /// By one that needs HTTP.
    pub(super) http: Bits,
}

impl Library {
    /// Gives new numbers to what has changed, and lists all policies in their order.
    #[expect(clippy::type_complexity, reason = "two lists of pairs, used in one place")]
    pub(super) fn read(
        &mut self,
        mesh: &Mesh,
    ) -> (Vec<(Arc<Policy>, Version)>, Vec<(Arc<AuthorizationPolicy>, Version)>) {
        let mut policies = BTreeMap::new();
        for (object, specs) in &mesh.policies {
            let before = self.policy_versions.get(object).map(Vec::as_slice).unwrap_or(&[]);
            let versions = specs.iter().enumerate().map(|(index, policy)| {
                let same = before.get(index).filter(|(old, _)| same(old, policy));
                let version = match same {
                    Some((_, version)) => *version,
                    None => {
                        self.last += 1;
                        self.last
                    }
                };
                (policy.clone(), version)
            });
            policies.insert(object.clone(), versions.collect::<Vec<_>>());
        }
        self.policy_versions = policies;

        let mut authorizations = BTreeMap::new();
        for (object, policy) in &mesh.authorization {
            let before = self.authorization_versions.get(object);
            let version = match before.filter(|(old, _)| same(old, policy)) {
                Some((_, version)) => *version,
                None => {
                    self.last += 1;
                    self.last
                }
            };
            authorizations.insert(object.clone(), (policy.clone(), version));
        }
        self.authorization_versions = authorizations;
        (
            self.policy_versions.values().flatten().cloned().collect(),
            self.authorization_versions.values().cloned().collect(),
        )
    }

    /// A policy of this number acts on some pod.
    pub(super) fn use_policy(&mut self, policy: &Arc<Policy>, version: Version, epoch: Epoch) {
        let acting = self.policies.entry(version).or_insert_with(|| ActingPolicy {
            policy: policy.clone(),
            origin: 0,
            rules: Vec::new(),
            seen: epoch,
        });
        acting.seen = epoch;
    }

    /// An AuthorizationPolicy of this number acts on some pod.
    pub(super) fn use_authorization(
        &mut self,
        policy: &Arc<AuthorizationPolicy>,
        version: Version,
        epoch: Epoch,
    ) {
        let acting = self.authorizations.entry(version).or_insert_with(|| ActingAuthorization {
            policy: policy.clone(),
            origin: 0,
            rules: Vec::new(),
            seen: epoch,
        });
        acting.seen = epoch;
    }

    pub(super) fn policy(&self, version: Version) -> Option<&ActingPolicy> {
        self.policies.get(&version)
    }

    pub(super) fn authorization(&self, version: Version) -> Option<&ActingAuthorization> {
        self.authorizations.get(&version)
    }

    /// Forgets policies that act no longer, and matches the others against the classes that are
    /// new, new ones against all.
    pub(super) fn refresh(
        &mut self,
        classes: &Classes,
        origins: &mut Interned<Origin>,
        ids: &mut Ids,
        epoch: Epoch,
        oldest: Epoch,
    ) {
        self.policies.retain(|_, acting| acting.seen >= oldest);
        self.authorizations.retain(|_, acting| acting.seen >= oldest);
        let (all, new) = (classes.all(), classes.added());
        let mut id = |origin: &Origin| origins.intern(origin.clone(), ids, epoch).0;

        let mut policies: Vec<_> = self.policies.iter_mut().collect();
        policies.sort_unstable_by_key(|(version, _)| **version);
        for (_, acting) in policies {
            let slots = if acting.origin == 0 { &all } else { &new };
            acting.origin = id(&acting.policy.origin);
            acting.rules.resize_with(acting.policy.rules.len(), Default::default);
            let dialect = acting.policy.dialect;
            for (rule, acting) in acting.policy.rules.iter().zip(&mut acting.rules) {
                acting.id = id(&rule.origin);
                slots.mark(&mut acting.unproven, classes, rule, dialect, Belief::of(rule, false));
                if rule.reads_proof() {
                    let proven = acting.proven.get_or_insert_default();
                    slots.mark(proven, classes, rule, dialect, Belief::of(rule, true));
                }
            }
        }
        let mut authorizations: Vec<_> = self.authorizations.iter_mut().collect();
        authorizations.sort_unstable_by_key(|(version, _)| **version);
        for (_, acting) in authorizations {
            let slots = if acting.origin == 0 { &all } else { &new };
            acting.origin = id(&acting.policy.origin);
            acting.refresh(classes, slots, &mut id);
        }
    }
}

impl ActingAuthorization {
    fn refresh(&mut self, classes: &Classes, slots: &Slots, id: &mut impl FnMut(&Origin) -> u32) {
        self.rules.resize_with(self.policy.rules.len(), || ActingRule {
            id: 0,
            sources: Default::default(),
        });
        for (rule, acting) in self.policy.rules.iter().zip(&mut self.rules) {
            acting.id = id(&rule.origin);
            for (proven, matched) in [false, true].into_iter().zip(&mut acting.sources) {
                for slot in &slots.list {
                    let Some(class) = classes.at(*slot) else { continue };
                    let facts = &class.facts;
                    let condition = rule.when.iter().all(|when| facts.meets(when, proven));
                    let by = |needs_http: bool| {
                        condition
                            && rule.from.iter().any(|source| {
                                source.needs_http == needs_http && facts.is_source(source, proven)
                            })
                    };
                    matched.l4.set(*slot, by(false) || (condition && rule.from.is_empty()));
                    matched.http.set(*slot, by(true));
                }
            }
        }
    }
}

fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}
