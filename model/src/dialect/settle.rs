use super::finding::{Finding, Severity};
use super::kinds;
use crate::mesh::{Mesh, ObjectRef};

impl Mesh {
    /// Puts what the MeshSettings say in the place of [`Mesh::settings`], and leaves out the
    /// policies of dialects that are off; the findings name those. To be done once to a mesh that
    /// is complete.
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
        findings
    }
}
