use super::schema::{MeshPolicySpec, Object};
use crate::dialect::cilium;
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::mesh::Resource;

/// A MeshPolicy or ClusterMeshPolicy.
pub(in crate::dialect) fn policy(reading: &mut Reading<'_>) -> Option<Resource> {
    let object: Object<MeshPolicySpec> = reading.decode(Unknown::Narrows)?;
    let at = Path::ROOT.field("spec");
    let Some(spec) = object.spec else {
        reading.error(&at, "missing; a policy has a spec");
        return None;
    };
    cilium::read_spec(reading, &at, spec.into())
}
