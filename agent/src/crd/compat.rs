//! Definitions of kinds that belong to others, for clusters where those are not installed. A
//! schema here names what Weft reads; whatever else the upstream one has is kept.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cilium::{CiliumClusterwideNetworkPolicy, CiliumNetworkPolicy};
use super::istio::{AuthorizationPolicy, PeerAuthentication};
use super::schema;

/// The definitions of kinds of other dialects that Weft reads.
pub fn compat() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![
        AuthorizationPolicy::crd(),
        CiliumClusterwideNetworkPolicy::crd(),
        CiliumNetworkPolicy::crd(),
        PeerAuthentication::crd(),
    ];
    for definition in &mut definitions {
        let is_cilium = definition.spec.group == "cilium.io";
        let root = definition
            .spec
            .versions
            .iter_mut()
            .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut());
        for root in root {
            // A policy of Istio may have no spec, and one of Cilium has `specs` in its place.
            root.required = None;
            if let Some(properties) = &mut root.properties {
                for part in ["spec", "status"] {
                    if let Some(part) = properties.get_mut(part) {
                        keep_unknown(part);
                    }
                }
                if is_cilium && let Some(spec) = properties.get("spec") {
                    let specs = list_of(spec.clone());
                    properties.insert("specs".to_owned(), specs);
                }
            }
        }
        if definition.spec.group == "security.istio.io"
            && let Some(first) = definition.spec.versions.first()
        {
            let mut older = first.clone();
            older.name = "v1beta1".to_owned();
            older.storage = false;
            definition.spec.versions.push(older);
        }
    }
    definitions
}

fn list_of(item: JSONSchemaProps) -> JSONSchemaProps {
    JSONSchemaProps {
        type_: Some("array".to_owned()),
        items: Some(JSONSchemaPropsOrArray::Schema(Box::new(item))),
        ..JSONSchemaProps::default()
    }
}

/// Keeps what the schema does not name, at every depth.
fn keep_unknown(schema: &mut JSONSchemaProps) {
    let is_map = matches!(schema.additional_properties, Some(JSONSchemaPropsOrBool::Schema(_)));
    if schema.type_.as_deref() == Some("object") && !is_map {
        schema.x_kubernetes_preserve_unknown_fields = Some(true);
    }
    schema.properties.iter_mut().flat_map(BTreeMap::values_mut).for_each(keep_unknown);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        keep_unknown(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        keep_unknown(values);
    }
}

/// A status that others write.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, Serialize)]
pub(super) struct ForeignStatus {
    #[schemars(schema_with = "schema::anything")]
    #[serde(default)]
    conditions: Option<Value>,
}
