use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use weft_model::dialect::read_object;
use weft_model::mesh::Settings;

use super::*;

#[test]
fn the_chart_has_the_definitions() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft");
    if std::env::var_os("WEFT_BLESS").is_some() {
        return files::write(&chart).unwrap();
    }
    let files = files::files().unwrap();
    for (path, text) in &files {
        let found = std::fs::read_to_string(chart.join(path)).unwrap_or_default();
        assert!(found == *text, "{}: run `cargo xtask crds`", path.display());
    }
    for folder in ["crds", "compat-crds"] {
        for entry in std::fs::read_dir(chart.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let known = files.contains_key(path.strip_prefix(&chart).unwrap());
            assert!(known, "{}: run `cargo xtask crds`", path.display());
        }
    }
}

/// Every field of a schema, with the simplest value that it takes.
fn filled(schema: &Value) -> Value {
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values[0].clone();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            let properties = schema.get("properties").and_then(Value::as_object);
            match (properties, schema.get("additionalProperties")) {
                (Some(properties), _) => properties
                    .iter()
                    .map(|(name, schema)| (name.clone(), filled(schema)))
                    .collect::<serde_json::Map<_, _>>()
                    .into(),
                (None, Some(values)) => json!({ "a": filled(values) }),
                (None, None) => json!({}),
            }
        }
        Some("array") => json!([filled(&schema["items"])]),
        Some("boolean") => json!(true),
        Some("integer") => json!(1),
        Some("string") => json!("a"),
        _ => json!(1),
    }
}

/// The dialects read these kinds with types of their own: those say what is wrong with an object
/// and where, these what the API server checks. Their fields are the same: a dialect takes any
/// other for a mistake.
#[test]
fn the_dialects_know_the_fields_of_the_schemas() {
    for definition in own().into_iter().chain(compat()) {
        let definition = serde_json::to_value(definition).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let mut object = filled(&version["schema"]["openAPIV3Schema"]);
            let group = definition["spec"]["group"].as_str().unwrap();
            object["apiVersion"] = json!(format!("{group}/{}", version["name"].as_str().unwrap()));
            object["kind"] = definition["spec"]["names"]["kind"].clone();
            object["metadata"] = json!({ "name": "default" });
            let spec = object["spec"].as_object().unwrap();
            assert!(spec.len() >= 3, "{object:#}");
            let document = read_object(&Settings::default(), &object);
            for finding in &document.findings {
                assert!(!finding.reason.contains("unknown field"), "{finding}");
                assert!(!finding.reason.contains("is expected"), "{finding}");
            }
        }
    }
}

fn validations<'a>(schema: &'a Value, found: &mut BTreeSet<&'a str>) {
    match schema {
        Value::Object(fields) => {
            let rules = fields.get("x-kubernetes-validations").and_then(Value::as_array);
            found.extend(rules.into_iter().flatten().filter_map(|rule| rule["message"].as_str()));
            fields.values().for_each(|value| validations(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| validations(item, found)),
        _ => {}
    }
}

#[test]
fn schemas_are_structural_and_have_rules() {
    let definitions: Vec<Value> =
        own().iter().map(|definition| serde_json::to_value(definition).unwrap()).collect();
    let mut messages = BTreeSet::new();
    definitions.iter().for_each(|definition| validations(definition, &mut messages));
    assert_eq!(messages.len(), 5, "{messages:#?}");
    for definition in &definitions {
        let version = &definition["spec"]["versions"][0];
        assert_eq!(version["subresources"]["status"], json!({}), "{definition}");
        assert!(version["additionalPrinterColumns"].as_array().unwrap().len() >= 4);
        assert!(!definition["spec"]["names"]["shortNames"].as_array().unwrap().is_empty());
        assert!(!version.to_string().contains("$ref"), "{definition}");
    }
}
