//! PeerAuthentication: "workload-specific, namespace-wide, mesh-wide; the narrowest policy
//! wins", UNSET inherits, and "when there are more than one policy in the same scope, the oldest
//! one wins" (the first by name, where they are of one age: files have no creation time).

use weft_common::Reason;

use super::party::End;
use super::{Connection, Outcome};
use crate::mesh::{Mesh, MtlsMode, Origin, PeerAuthentication, Pod, Scope};

/// What a port of a pod asks of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsRequirement {
    /// The mode.
    pub mode: MtlsMode,
    /// What says so; none where it is the mesh's default.
    pub origin: Option<Origin>,
}

/// The mTLS mode of a port of a pod.
pub fn mtls(mesh: &Mesh, pod: &Pod, port: u16) -> MtlsRequirement {
    let said =
        |mode: MtlsMode, origin: &Origin| MtlsRequirement { mode, origin: Some(origin.clone()) };
    let at = |level: fn(&Scope, &Pod) -> bool| {
        let of_level = mesh.peer_authentication.values();
        of_level.filter(|policy| level(&policy.scope, pod)).min_by_key(|policy| policy.created)
    };
    let whole = |policy: &PeerAuthentication| policy.mode.map(|mode| said(mode, &policy.origin));

    if let Some(policy) = at(is_workload) {
        if let Some((Some(mode), origin)) = policy.ports.get(&port) {
            return said(*mode, origin);
        }
        if let Some(requirement) = whole(policy) {
            return requirement;
        }
    }
    if let Some(requirement) = at(is_namespace).and_then(|policy| whole(policy)) {
        return requirement;
    }
    if let Some(requirement) = at(is_mesh).and_then(|policy| whole(policy)) {
        return requirement;
    }
    MtlsRequirement { mode: mesh.settings.default_mtls, origin: None }
}

pub(super) fn judge(mesh: &Mesh, pod: &Pod, source: &End, connection: &Connection) -> Outcome {
    let required = mtls(mesh, pod, connection.port);
    if required.mode != MtlsMode::Strict {
        return Outcome::UNRESTRICTED;
    }
    if source.is_node(&pod.node) {
        return Outcome::because(Reason::OwnNode);
    }
    let reason = if connection.proven { Reason::Rule } else { Reason::NotProven };
    Outcome { reason, origin: required.origin }
}

/// Whether some port of the pod is STRICT.
pub(super) fn restricts(mesh: &Mesh, pod: &Pod) -> bool {
    let named = mesh.peer_authentication.values().flat_map(|policy| policy.ports.keys());
    // Any one port stands for those that no policy names.
    let unnamed = (0..=u16::MAX).find(|port| !named.clone().any(|own| own == port));
    let strict = |port: u16| mtls(mesh, pod, port).mode == MtlsMode::Strict;
    named.clone().copied().chain(unnamed).any(strict)
}

// Istio passes over a PeerAuthentication of the root namespace that has a selector
// (`Scope::Selected`): its `ComposePeerAuthentication` takes none for a workload's.
fn is_workload(scope: &Scope, pod: &Pod) -> bool {
    match scope {
        Scope::Workload(namespace, selector) => {
            *namespace == pod.name.namespace && selector.matches(&pod.labels)
        }
        _ => false,
    }
}

fn is_namespace(scope: &Scope, pod: &Pod) -> bool {
    matches!(scope, Scope::Namespace(namespace) if *namespace == pod.name.namespace)
}

fn is_mesh(scope: &Scope, _: &Pod) -> bool {
    matches!(scope, Scope::Mesh)
}
