use std::collections::BTreeMap;

use super::finding::{Finding, Severity};
use super::kinds;
use crate::mesh::{Mesh, ObjectRef, Scope};

impl Mesh {
    /// Puts what the MeshSettings say in the place of [`Mesh::settings`], and leaves out the
    /// policies of dialects that are off; the findings name those, and what another object keeps
    /// from being in force. To be done once to a mesh that is complete.
    pub fn settle(&mut self) -> Vec<Finding> {
        // The API server takes only one; of several in files, the first by name counts.
        if let Some(said) = self.settings_objects.values().next() {
            self.settings = self.settings.with(said);
        }
        let (cilium, istio) = (self.settings.cilium, self.settings.istio);
        let mut findings = Vec::new();
        let mut keep = |object: &ObjectRef| {
            let off = match kinds::dialect_of(&object.kind) {
                Some("cilium") if !cilium => "cilium",
                Some("istio") if !istio => "istio",
                _ => return true,
            };
            findings.push(Finding {
                severity: Severity::Warning,
                object: Some(object.clone()),
                field: "kind".into(),
                reason: format!(
                    "not in force: the MeshSettings have `dialects.{off}: false`; set it to true, \
                     or remove the object"
                ),
                location: None,
            });
            false
        };
        self.policies.retain(|object, _| keep(object));
        self.authorization.retain(|object, _| keep(object));
        self.peer_authentication.retain(|object, _| keep(object));
        findings.extend(self.second_peer_authentications());
        findings
    }

    /// Of the PeerAuthentications of the mesh, and of a namespace, one is in force.
    fn second_peer_authentications(&self) -> Vec<Finding> {
        let mut by_age: Vec<_> = self.peer_authentication.iter().collect();
        by_age.sort_by_key(|(_, policy)| policy.created);
        let mut first = BTreeMap::new();
        let mut findings = Vec::new();
        for (object, policy) in by_age {
            let (level, of) = match &policy.scope {
                Scope::Mesh => (None, "the mesh".to_owned()),
                Scope::Namespace(namespace) => {
                    (Some(namespace), format!("the namespace {namespace}"))
                }
                _ => continue,
            };
            let in_force = *first.entry(level).or_insert(object);
            if in_force == object {
                continue;
            }
            findings.push(Finding {
                severity: Severity::Warning,
                object: Some(object.clone()),
                field: "spec".into(),
                reason: format!(
                    "not in force: of the PeerAuthentications of {of} the oldest counts, {in_force} \
                     (the first by name, where they are of one age); remove one of them, or give \
                     this one a selector"
                ),
                location: None,
            });
        }
        findings
    }
}
