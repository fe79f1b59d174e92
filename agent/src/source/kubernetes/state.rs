//! What the objects of all kinds say, as far as it is in force.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use weft_model::dialect::Finding;
use weft_model::mesh::{Labels, Mesh, Name, ObjectRef, Resource, Settings};

use super::follow::Seen;
use super::kinds::Kind;

/// The mesh as it is known so far.
#[derive(Debug, Default)]
pub(super) struct State {
    pub mesh: Mesh,
    findings: BTreeMap<ObjectRef, Vec<Finding>>,
    texts: Texts,
}

/// What a change has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    pub mesh: bool,
    /// What is to be said about objects.
    pub findings: bool,
}

impl Effect {
    pub(super) fn and(&mut self, other: Self) {
        self.mesh |= other.mesh;
        self.findings |= other.findings;
    }
}

impl State {
    /// Without any object.
    pub(super) fn new(settings: Settings) -> Self {
        Self { mesh: Mesh { settings, ..Mesh::default() }, ..Self::default() }
    }

    /// Takes what an object says now. What is not good leaves the last good version in force.
    pub(super) fn take(&mut self, kind: &Kind, seen: Seen) -> Effect {
        let Seen { name, mut document } = seen;
        let object = object(kind, name);
        for resource in &mut document.resources {
            self.texts.share(resource);
        }
        let mut effect = Effect { mesh: self.mesh.insert_document(&document), findings: false };
        let known = self.findings.get(&object).map(Vec::as_slice).unwrap_or_default();
        if known != document.findings {
            effect.findings = true;
            if document.findings.is_empty() {
                self.findings.remove(&object);
            } else {
                self.findings.insert(object, document.findings);
            }
        }
        effect
    }

    /// Forgets an object.
    pub(super) fn remove(&mut self, kind: &Kind, name: Name) -> Effect {
        self.forget(&object(kind, name))
    }

    fn forget(&mut self, object: &ObjectRef) -> Effect {
        let findings = self.findings.remove(object).is_some();
        Effect { mesh: self.mesh.remove(object), findings }
    }

    /// Forgets the objects of a kind that are not listed.
    pub(super) fn retain(&mut self, kind: &Kind, listed: &HashSet<Name>) -> Effect {
        let of_kind = |object: &&ObjectRef| *object.kind == *kind.kind;
        let mut gone: BTreeSet<ObjectRef> = self.mesh.objects(kind.kind).into_iter().collect();
        gone.extend(self.findings.keys().filter(of_kind).cloned());
        gone.retain(|object| !listed.contains(&object.name));
        let mut effect = Effect::default();
        for object in gone {
            effect.and(self.forget(&object));
        }
        self.texts.sweep();
        effect
    }

    /// What is to be said about the objects, and `more`.
    pub(super) fn findings(&self, more: &[Finding]) -> Arc<[Finding]> {
        self.findings.values().flatten().chain(more).cloned().collect()
    }

    /// How many objects there are.
    pub(super) fn objects(&self) -> usize {
        let mesh = &self.mesh;
        mesh.namespaces.len()
            + mesh.nodes.len()
            + mesh.pods.len()
            + mesh.service_accounts.len()
            + mesh.services.len()
            + mesh.endpoint_slices.len()
            + mesh.policies.len()
            + mesh.authorization.len()
            + mesh.peer_authentication.len()
            + mesh.settings_objects.len()
    }
}

fn object(kind: &Kind, name: Name) -> ObjectRef {
    ObjectRef { kind: kind.kind.into(), name }
}

/// Texts, and the labels of pods, that many objects have in common, each held once.
#[derive(Debug, Default)]
struct Texts {
    held: HashSet<Arc<str>>,
    labels_of_pods: HashSet<Arc<Labels>>,
    after_sweep: usize,
}

impl Texts {
    fn share(&mut self, resource: &mut Resource) {
        if self.count() > 1024 + self.after_sweep * 2 {
            self.sweep();
        }
        match resource {
            Resource::Pod(pod) => {
                let pod = Arc::make_mut(pod);
                self.one(&mut pod.name.namespace);
                self.one(&mut pod.node);
                self.one(&mut pod.service_account);
                self.labels_of_pod(&mut pod.labels);
                for port in &mut pod.named_ports {
                    self.one(&mut port.name);
                }
            }
            Resource::Service(service) => {
                let service = Arc::make_mut(service);
                self.one(&mut service.name.namespace);
                self.one(&mut service.origin.object.kind);
                self.one(&mut service.origin.field);
                service.origin.object.name = service.name.clone();
                self.labels(&mut service.labels);
            }
            Resource::EndpointSlice(slice) => {
                let slice = Arc::make_mut(slice);
                self.one(&mut slice.name.namespace);
                slice.service.iter_mut().for_each(|service| self.one(service));
                for endpoint in &mut slice.endpoints {
                    endpoint.node.iter_mut().for_each(|node| self.one(node));
                    endpoint.zones.iter_mut().for_each(|zone| self.one(zone));
                }
            }
            Resource::ServiceAccount(account) => {
                self.one(&mut account.name.namespace);
                self.labels(&mut account.labels);
            }
            _ => {}
        }
    }

    fn labels_of_pod(&mut self, labels: &mut Arc<Labels>) {
        match self.labels_of_pods.get(&**labels) {
            Some(held) => *labels = held.clone(),
            None => {
                self.labels(Arc::make_mut(labels));
                self.labels_of_pods.insert(labels.clone());
            }
        }
    }

    fn labels(&mut self, labels: &mut Labels) {
        *labels = std::mem::take(labels)
            .into_iter()
            .map(|(mut key, mut value)| {
                self.one(&mut key);
                self.one(&mut value);
                (key, value)
            })
            .collect();
    }

    fn one(&mut self, text: &mut Arc<str>) {
        match self.held.get(&**text) {
            Some(held) => *text = held.clone(),
            None => {
                self.held.insert(text.clone());
            }
        }
    }

    /// Lets go of what nothing else holds.
    fn sweep(&mut self) {
        self.labels_of_pods.retain(|labels| Arc::strong_count(labels) > 1);
        self.held.retain(|text| Arc::strong_count(text) > 1);
        self.after_sweep = self.count();
    }

    fn count(&self) -> usize {
        self.held.len() + self.labels_of_pods.len()
    }
}
