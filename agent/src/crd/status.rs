use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// The object was read, and says what it says; the message names the field that is wrong.
pub const ACCEPTED: &str = "Accepted";
/// The object's last generation is in force on every node that runs an agent.
pub const ENFORCED: &str = "Enforced";

/// What became of an object, written by the leader of `weft ca`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// The generation that the conditions are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted` and `Enforced`.
    #[serde(default)]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// What `kubectl get` shows of an object with an [`ObjectStatus`].
pub(super) fn columns() -> impl Iterator<Item = CustomResourceColumnDefinition> {
    let condition = |of: &str, field| format!(".status.conditions[?(@.type==\"{of}\")].{field}");
    [
        (ACCEPTED, "string", None, condition(ACCEPTED, "status")),
        (ENFORCED, "string", None, condition(ENFORCED, "status")),
        // With `-o wide`.
        ("Nodes", "string", Some(1), condition(ENFORCED, "message")),
        ("Age", "date", None, ".metadata.creationTimestamp".to_owned()),
    ]
    .into_iter()
    .map(|(name, type_, priority, json_path)| CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: type_.to_owned(),
        priority,
        json_path,
        ..CustomResourceColumnDefinition::default()
    })
}
