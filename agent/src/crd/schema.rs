//! Schemas of types that are not Weft's.

use schemars::{Schema, SchemaGenerator, json_schema};

/// `metav1.LabelSelector`.
pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "description": "Selects by labels. All requirements hold; without any, everything is selected.",
        "properties": {
            "matchLabels": {
                "type": "object",
                "description": "Labels with their values.",
                "additionalProperties": { "type": "string", "maxLength": 63 }
            },
            "matchExpressions": {
                "type": "array",
                "description": "Requirements on labels.",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "type": "string", "description": "The label's key." },
                        "operator": {
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                            "description": "What must hold for its value."
                        },
                        "values": {
                            "type": "array",
                            "items": { "type": "string" },
                            "description": "For In and NotIn."
                        }
                    }
                }
            }
        }
    })
}

/// A list of [`label_selector`]s.
pub(super) fn label_selectors(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": label_selector(generator) })
}

/// A number or text.
pub(super) fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "description": "A port: a number (0 stands for all), or the name that the pod gives it."
    })
}

/// Anything, of which nothing is dropped.
pub(super) fn anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// A list of anything.
pub(super) fn list_of_anything(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "x-kubernetes-preserve-unknown-fields": true } })
}

/// `metav1.Condition`s, each type once.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What became of the object.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "description": "Accepted or Enforced." },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "The generation that the condition is about."
                },
                "lastTransitionTime": { "type": "string", "format": "date-time" },
                "reason": { "type": "string", "maxLength": 1024 },
                "message": { "type": "string", "maxLength": 32768 }
            }
        }
    })
}
