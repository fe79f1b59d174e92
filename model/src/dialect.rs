//! Manifests of every dialect, read into resources of the mesh.
//!
//! A document is read whole or not at all: where a [`Finding`] is an error, it says nothing, and
//! its last good version should stay in force. What narrows access and cannot be read, or can be
//! read and not be enforced, never opens anything: see [`Document::deny_fallback`] and
//! [`Needs`](crate::mesh::Needs).

mod cilium;
mod finding;
mod istio;
mod kinds;
mod kubernetes;
mod object;
mod path;
mod principal;
mod reading;
mod selector;
mod settle;
#[cfg(test)]
mod tests;
mod weft;
mod yaml;

use std::sync::Arc;

use serde_json::Value;

pub use self::finding::{Document, Finding, Severity};
pub use self::principal::is_trust_domain;
use self::reading::Source;
use crate::mesh::Settings;

/// The annotations that are read of objects. Whoever keeps only a part of an object keeps these.
pub const ANNOTATIONS: [&str; 7] = [
    kubernetes::ACCELERATE_ANNOTATION,
    kubernetes::MIRROR_ANNOTATION,
    istio::DRY_RUN_ANNOTATION,
    // What other meshes read of namespaces and pods.
    "sidecar.istio.io/inject",
    "linkerd.io/inject",
    "consul.hashicorp.com/connect-inject",
    "appmesh.k8s.aws/sidecarInjectorWebhook",
];

/// What is said of a rule that HTTP would have to be read for.
const NEEDS_HTTP: &str =
    "needs HTTP inspection; what it would have to inspect is denied until the proxy speaks HTTP";

/// Reads a manifest: YAML (or JSON) with any number of documents. An object in a `List` is a
/// document of its own. A syntax error costs only the document that has it.
///
/// `file` is what findings and origins name.
pub fn read_yaml(settings: &Settings, file: &str, text: &str) -> Vec<Document> {
    let file: Arc<str> = file.into();
    let mut documents = Vec::new();
    for document in yaml::read(text) {
        let source = Source::File(&file, &document.lines);
        object::read_all(settings, &document.value, source, &document.problems, &mut documents);
    }
    documents
}

/// Reads an object that comes from an API server. The API server has dropped unknown fields, and
/// fields that Weft does not know yet are none of the user's mistakes, so those are only reported
/// where they change what is in force.
pub fn read_object(settings: &Settings, object: &Value) -> Document {
    object::read(settings, object, Source::Server, &[])
}
