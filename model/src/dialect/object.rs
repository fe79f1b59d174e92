//! What all objects have in common: group, version, kind, name, namespace.

use std::sync::Arc;

use serde_json::Value;

use super::finding::{Document, Finding, Severity};
use super::kinds::{self, Kind, Unread};
use super::path::Path;
use super::reading::{Reading, Source};
use super::yaml::Problem;
use super::{cilium, istio, kubernetes, selector, weft};
use crate::mesh::{Location, Name, ObjectRef, ObjectVersion, Resource, Settings};

/// Reads an object, or the objects of a list.
pub(super) fn read_all(
    settings: &Settings,
    value: &Value,
    source: Source<'_>,
    problems: &[Problem],
    documents: &mut Vec<Document>,
) {
    let items = value.get("items").and_then(Value::as_array);
    let (Some(items), Source::File(file, lines), true) = (items, source, is_list(value)) else {
        return documents.push(read(settings, value, source, problems));
    };
    let items_at = Path::ROOT.field("items");
    for (index, item) in items.iter().enumerate() {
        let at = items_at.index(index);
        let Some(lines) = lines.get(&at) else { continue };
        let own: Vec<_> = problems.iter().filter_map(|problem| problem.inside(&at)).collect();
        documents.push(read(settings, item, Source::File(file, lines), &own));
    }
    let is_of_item = |problem: &Problem| {
        (0..items.len()).any(|index| items_at.index(index).contains(&problem.path))
    };
    let findings: Vec<_> = problems
        .iter()
        .filter(|problem| problem.cut || !is_of_item(problem))
        .map(|problem| Finding {
            severity: Severity::Error,
            object: None,
            field: problem.path.to_string().into(),
            reason: match problem.cut {
                true => format!("{}; what follows in the list is not read", problem.reason),
                false => problem.reason.clone(),
            },
            location: Some(Location { file: Arc::clone(file), line: problem.line }),
        })
        .collect();
    if !findings.is_empty() {
        let location = source.location(&Path::ROOT);
        documents.push(Document { location, findings, ..Document::default() });
    }
}

fn is_list(value: &Value) -> bool {
    text(value, "apiVersion") == Some("v1") && text(value, "kind") == Some("List")
        || text(value, "kind").is_some_and(|kind| kind.ends_with("List"))
            && value.get("metadata").is_none_or(|metadata| metadata.get("name").is_none())
}

/// Reads one object.
pub(super) fn read(
    settings: &Settings,
    value: &Value,
    source: Source<'_>,
    problems: &[Problem],
) -> Document {
    let header = Header::of(value);
    let object = header.object(value, problems);
    let location = source.location(&Path::ROOT);
    let known = object.is_some();
    let mut reading = Reading::new(
        settings,
        value,
        source,
        object.clone().unwrap_or_else(|| ObjectRef {
            kind: "".into(),
            name: Name { namespace: "".into(), name: "".into() },
        }),
    );
    reading.suspect = problems.iter().map(|problem| problem.path.clone()).collect();
    reading.is_cut = problems.iter().any(|problem| problem.cut);

    let mut resources = Vec::new();
    for problem in problems {
        let location = reading.source.location(&Path::ROOT).map(|mut location| {
            location.line = problem.line;
            location
        });
        let field = problem.path.to_string().into();
        reading.report_at(Severity::Error, field, location, problem.reason.clone());
    }
    if problems.is_empty() {
        header.check(&mut reading);
        if let (Some(kind), false) = (header.kind_read(), reading.has_error()) {
            resources = read_kind(kind, &mut reading);
        }
    }

    let mut deny_fallback = None;
    if reading.has_error() {
        resources.clear();
        if let (Some(kind), true) = (header.kind_read(), known) {
            deny_fallback = fallback(kind, &mut reading);
        }
    }
    let version = known.then(|| header.version(value)).flatten();
    let mut findings = reading.findings;
    if !known {
        findings.iter_mut().for_each(|finding| finding.object = None);
    }
    Document { object, version, location, resources, findings, deny_fallback }
}

fn read_kind(kind: Kind, reading: &mut Reading<'_>) -> Vec<Resource> {
    match kind {
        Kind::Namespace => kubernetes::namespace(reading).into_iter().collect(),
        Kind::Node => kubernetes::node(reading).into_iter().collect(),
        Kind::Pod => kubernetes::pod(reading).into_iter().collect(),
        Kind::ServiceAccount => kubernetes::service_account(reading).into_iter().collect(),
        Kind::Service => kubernetes::service(reading).into_iter().collect(),
        Kind::EndpointSlice => kubernetes::endpoint_slice(reading).into_iter().collect(),
        Kind::NetworkPolicy => kubernetes::network_policy(reading).into_iter().collect(),
        Kind::CiliumNetworkPolicy | Kind::CiliumClusterwideNetworkPolicy => cilium::policy(reading),
        Kind::AuthorizationPolicy => istio::authorization(reading).into_iter().collect(),
        Kind::PeerAuthentication => istio::peer_authentication(reading).into_iter().collect(),
        Kind::MeshPolicy | Kind::ClusterMeshPolicy => weft::policy(reading).into_iter().collect(),
        Kind::MeshSettings => weft::settings(reading).into_iter().collect(),
    }
}

/// What stands for a policy that is not in force.
fn fallback(kind: Kind, reading: &mut Reading<'_>) -> Option<Vec<Resource>> {
    match kind {
        Kind::NetworkPolicy => Some(kubernetes::deny_fallback(reading)),
        Kind::CiliumNetworkPolicy
        | Kind::CiliumClusterwideNetworkPolicy
        | Kind::MeshPolicy
        | Kind::ClusterMeshPolicy => Some(cilium::deny_fallback(reading)),
        Kind::MeshSettings => weft::settings_fallback(reading),
        Kind::AuthorizationPolicy => istio::authorization_fallback(reading),
        Kind::PeerAuthentication => Some(istio::peer_authentication_fallback(reading)),
        _ => None,
    }
}

/// Group, version and kind.
struct Header<'a> {
    api_version: Option<&'a str>,
    group: &'a str,
    version: &'a str,
    kind: Option<&'a str>,
}

impl<'a> Header<'a> {
    fn of(value: &'a Value) -> Self {
        let api_version = text(value, "apiVersion");
        let (group, version) = match api_version.and_then(|api| api.split_once('/')) {
            Some(group_version) => group_version,
            None => ("", api_version.unwrap_or_default()),
        };
        Self { api_version, group, version, kind: text(value, "kind") }
    }

    /// The kind, if it is one that is read, whatever the version.
    fn kind_read(&self) -> Option<Kind> {
        Kind::of(self.group, self.kind?)
    }

    /// The object's version, where somebody is told which one is in force.
    fn version(&self, value: &Value) -> Option<ObjectVersion> {
        let metadata = value.get("metadata").filter(|_| self.group == "weft.dev")?;
        let generation = metadata.get("generation")?.as_i64()?;
        Some(ObjectVersion { uid: text(metadata, "uid")?.into(), generation })
    }

    /// Which object it is. Kinds that are not read carry their group, for two groups may use one
    /// name (`AuthorizationPolicy` is Istio's, `AuthorizationPolicy.policy.linkerd.io` is not).
    fn object(&self, value: &Value, problems: &[Problem]) -> Option<ObjectRef> {
        self.api_version?;
        let kind = self.kind?;
        let metadata = value.get("metadata")?;
        let name = text(metadata, "name").filter(|name| !name.is_empty())?;
        let known = self.kind_read();
        let of_cluster =
            known.map_or_else(|| kinds::is_of_cluster(self.group, kind), Kind::is_of_cluster);
        let at = Path::ROOT.field("metadata");
        let namespace = match text(metadata, "namespace").filter(|name| !name.is_empty()) {
            _ if of_cluster => "",
            Some(namespace) => namespace,
            // The namespace may be in what could not be read.
            None if problems.iter().any(|problem| problem.cut && at.contains(&problem.path)) => {
                return None;
            }
            None => "default",
        };
        let kind: Arc<str> = match known {
            None if !self.group.is_empty() => format!("{kind}.{}", self.group).into(),
            _ => kind.into(),
        };
        Some(ObjectRef { kind, name: Name { namespace: namespace.into(), name: name.into() } })
    }

    fn check(&self, reading: &mut Reading<'_>) {
        let root = Path::ROOT;
        if !reading.value.is_object() {
            reading.error(&root, "a document is a map with apiVersion, kind and metadata");
            return;
        }
        let (Some(_), Some(kind)) = (self.api_version, self.kind) else {
            for field in ["apiVersion", "kind"] {
                if text(reading.value, field).is_none() {
                    reading.error(&root.field(field), "missing, or no text; every object has one");
                }
            }
            return;
        };
        let Some(known) = self.kind_read() else { return self.report_unread(reading, kind) };
        check_metadata(reading, known);
        match known.versions() {
            versions if versions.contains(&self.version) => {}
            versions => {
                let served = versions.join(" or ");
                let prefix = if self.group.is_empty() { "" } else { "/" };
                let group = self.group;
                let reason = format!(
                    "version {} of {kind} is not read; write {group}{prefix}{served}",
                    self.version
                );
                reading.error(&root.field("apiVersion"), reason);
            }
        }
    }

    fn report_unread(&self, reading: &mut Reading<'_>, kind: &str) {
        let at = Path::ROOT.field("kind");
        let of = if self.group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind} ({})", self.group)
        };
        match kinds::unread(self.group, kind) {
            Unread::NotEnforced => reading.warning(
                &at,
                format_args!("{of} is not supported and not enforced: it narrows no access here"),
            ),
            Unread::Later => {
                reading.note(&at, format_args!("{of} is not read yet; a later version will"));
            }
            Unread::Foreign => reading.note(&at, format_args!("{of} is not read; it is ignored")),
        }
    }
}

fn check_metadata(reading: &mut Reading<'_>, kind: Kind) {
    let at = Path::ROOT.field("metadata");
    let Some(metadata) = reading.get(&at).filter(|metadata| metadata.is_object()) else {
        return reading.error(&at, "missing, or no map; every object has a metadata.name");
    };
    let name_at = at.field("name");
    match metadata.get("name").and_then(Value::as_str) {
        None | Some("") => {
            return reading.error(&name_at, "missing, or no text; every object has a name");
        }
        Some(name) if !selector::is_dns_subdomain(name) => {
            reading.error(
                &name_at,
                "a name has at most 253 lower-case letters, digits, '-' and '.', and begins and \
                 ends with a letter or digit",
            );
        }
        Some(_) => {}
    }
    let namespace_at = at.field("namespace");
    match metadata.get("namespace") {
        None | Some(Value::Null) => {}
        Some(Value::String(namespace)) if kind.is_of_cluster() => {
            if !namespace.is_empty() {
                reading.note(&namespace_at, "ignored: objects of this kind are in no namespace");
            }
        }
        Some(Value::String(namespace)) if namespace.is_empty() => {}
        Some(Value::String(namespace)) if selector::is_dns_label(namespace) => {}
        Some(_) => reading.error(
            &namespace_at,
            "the name of a namespace is text of at most 63 lower-case letters, digits and '-', \
             and begins and ends with a letter or digit",
        ),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}
