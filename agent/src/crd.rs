//! The CustomResourceDefinitions of Weft's own kinds (`weft.dev/v1alpha1`), and of those kinds of
//! other dialects that it reads, made from types. What an object says is read by
//! [`weft_model::dialect`]; the types here are what the API server checks before.

mod cilium;
mod compat;
pub mod files;
mod istio;
mod policy;
mod schema;
mod settings;
mod status;
#[cfg(test)]
mod tests;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use compat::compat;
pub use policy::*;
pub use settings::*;
pub use status::*;

/// The group of Weft's kinds.
pub const GROUP: &str = "weft.dev";

/// The definitions of Weft's own kinds.
pub fn own() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![ClusterMeshPolicy::crd(), MeshPolicy::crd(), MeshSettings::crd()];
    for version in definitions.iter_mut().flat_map(|definition| &mut definition.spec.versions) {
        version.additional_printer_columns.get_or_insert_default().extend(status::columns());
    }
    definitions
}

/// A definition as YAML, as it stands in the chart.
///
/// # Errors
/// Where it cannot be written, which is a fault of the types.
pub fn yaml(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    // Maps of JSON are sorted, so that the text does not depend on the order of fields.
    let value = serde_json::to_value(definition)?;
    Ok(serde_saphyr::to_string(&value)?)
}
