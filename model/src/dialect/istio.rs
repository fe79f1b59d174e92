//! Istio's policies (istio.io, "Authorization Policy", "PeerAuthentication"; `pkg/config/
//! validation` says what is refused).

mod authorization;
mod condition;
mod peer_authentication;
mod schema;
mod source;
#[cfg(test)]
mod tests;

pub(super) use self::authorization::{DRY_RUN_ANNOTATION, authorization, authorization_fallback};
pub(super) use self::peer_authentication::{peer_authentication, peer_authentication_fallback};

use serde::Deserialize;

use self::schema::{TargetRef, WorkloadSelector};
use super::path::Path;
use super::reading::Reading;
use super::selector::{check_key, check_value};
use crate::mesh::{Operator, Requirement, Scope, Selector};

/// What a selector and targets mean, in the policy's namespace.
fn scope(
    reading: &mut Reading<'_>,
    at: &Path,
    selector: Option<&WorkloadSelector>,
    targets: &[(Path, TargetRef)],
) -> Scope {
    if let (Some(_), [(target_at, _), ..]) = (selector, targets) {
        reading.error(target_at, "stands beside a selector; remove one of them");
    }
    let namespace = reading.object.name.namespace.clone();
    let is_root = namespace == reading.settings.root_namespace;
    if !targets.is_empty() {
        let services: Vec<_> =
            targets.iter().filter_map(|(at, target)| service_target(reading, at, target)).collect();
        return match services.is_empty() {
            true => Scope::Nothing,
            false => Scope::Services(namespace, services),
        };
    }
    let selector = selector.map(|labels| workload_selector(reading, &at.field("selector"), labels));
    match (is_root, selector.filter(|selector| !selector.requirements.is_empty())) {
        (true, None) => Scope::Mesh,
        (true, Some(selector)) => Scope::Selected(selector),
        (false, None) => Scope::Namespace(namespace),
        (false, Some(selector)) => Scope::Workload(namespace, selector),
    }
}

fn workload_selector(reading: &mut Reading<'_>, at: &Path, labels: &WorkloadSelector) -> Selector {
    let labels_at = at.field("matchLabels");
    let labels = labels.match_labels.iter().flatten();
    if labels.clone().next().is_none() {
        reading.note(at, "has no labels and therefore selects every pod");
    }
    let requirements = labels
        .map(|(key, value)| {
            let at = labels_at.field(key);
            check_key(reading, &at, key);
            check_value(reading, &at, value);
            Requirement {
                key: key.as_str().into(),
                operator: Operator::In(vec![value.as_str().into()]),
            }
        })
        .collect();
    Selector { requirements }
}

fn service_target(
    reading: &mut Reading<'_>,
    at: &Path,
    target: &TargetRef,
) -> Option<std::sync::Arc<str>> {
    let kind = target.kind.as_deref().unwrap_or_default();
    let name = target.name.as_deref().unwrap_or_default();
    for (field, value) in [("kind", kind), ("name", name)] {
        if value.is_empty() {
            reading.error(&at.field(field), "missing; a target has a kind and a name");
        }
    }
    let namespace = target.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    if namespace.is_some_and(|namespace| *namespace != *reading.object.name.namespace) {
        reading.error(&at.field("namespace"), "a target is in the namespace of its policy");
    }
    match (target.group.as_deref().unwrap_or_default(), kind) {
        ("" | "core", "Service") => Some(name.into()),
        _ => {
            reading.warning(
                at,
                format_args!("a target of kind {kind} is not supported and not enforced"),
            );
            None
        }
    }
}

/// The scope of a policy that is not in force: its whole namespace, where its selector or its
/// targets cannot be trusted.
fn fallback_scope(reading: &mut Reading<'_>) -> Scope {
    let spec_at = Path::ROOT.field("spec");
    let selector_at = spec_at.field("selector");
    let is_suspect = reading.is_suspect(&selector_at);
    let selector = reading.get(&selector_at).filter(|_| !is_suspect);
    let selector = selector.and_then(|value| WorkloadSelector::deserialize(value).ok());
    let known = selector.and_then(|selector| {
        reading.quietly(|reading| Some(scope(reading, &spec_at, Some(&selector), &[])))
    });
    let namespace = reading.object.name.namespace.clone();
    known.unwrap_or_else(|| match namespace == reading.settings.root_namespace {
        true => Scope::Mesh,
        false => Scope::Namespace(namespace),
    })
}
