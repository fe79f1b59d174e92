use std::collections::BTreeMap;

use super::schema::{AuthorizationSpec, Object, Rule};
use super::{condition, fallback_scope, scope, source};
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::mesh::{Action, AuthorizationPolicy, AuthorizationRule, Needs, Resource};

/// Annotation of a policy that is to be tried without effect.
pub(in crate::dialect) const DRY_RUN_ANNOTATION: &str = "istio.io/dry-run";

pub(in crate::dialect) fn authorization(reading: &mut Reading<'_>) -> Option<Resource> {
    let object: Object<AuthorizationSpec> = reading.decode(Unknown::Narrows)?;
    // An empty spec allows nothing; so does none.
    let spec = object.spec.unwrap_or_default();
    let at = Path::ROOT.field("spec");

    let mut targets: Vec<_> =
        spec.target_ref.into_iter().map(|target| (at.field("targetRef"), target)).collect();
    let listed = spec.target_refs.unwrap_or_default().into_iter().enumerate();
    targets.extend(listed.map(|(index, target)| (at.field("targetRefs").index(index), target)));
    let scope = scope(reading, &at, spec.selector.as_ref(), &targets);

    let mut action = action(reading, &at, spec.action.as_deref());
    if spec.provider.is_some() && action != Action::Custom {
        reading.error(&at.field("provider"), "is only allowed with action CUSTOM; remove it");
    }
    let rules_at = at.field("rules");
    let listed = spec.rules.unwrap_or_default();
    let matches_nothing = listed.is_empty() && matches!(action, Action::Deny | Action::Custom);
    if matches_nothing && !reading.has_error() {
        reading.warning(
            &at.field("action"),
            "without rules the policy matches nothing and has no effect; `rules: [{}]` matches all",
        );
    }
    let mut rules = Vec::new();
    for (index, rule) in listed.iter().enumerate() {
        rules.push(read_rule(reading, &at, &rules_at.index(index), rule));
    }
    if is_dry_run(reading, object.metadata.annotations.as_ref()) {
        action = Action::Audit;
    }
    Some(Resource::from(AuthorizationPolicy { origin: reading.origin(&at), scope, action, rules }))
}

/// What stands for a policy that is not in force: an allowing one allows nothing, a denying one
/// denies everything.
pub(in crate::dialect) fn authorization_fallback(
    reading: &mut Reading<'_>,
) -> Option<Vec<Resource>> {
    let at = Path::ROOT.field("spec");
    let scope = fallback_scope(reading);
    let action_at = at.field("action");
    let action = match reading.get(&action_at).map(|action| action.as_str()) {
        _ if reading.is_suspect(&action_at) => Action::Deny,
        None | Some(Some("ALLOW")) => Action::Allow,
        Some(Some("AUDIT")) => return None,
        Some(_) => Action::Deny,
    };
    let rules = match action {
        Action::Allow => Vec::new(),
        _ => vec![AuthorizationRule {
            origin: reading.origin(&at),
            from: Vec::new(),
            to: Vec::new(),
            when: Vec::new(),
            needs: Needs::Unsupported,
        }],
    };
    let origin = reading.origin(&at);
    Some(vec![Resource::from(AuthorizationPolicy { origin, scope, action, rules })])
}

fn action(reading: &mut Reading<'_>, at: &Path, action: Option<&str>) -> Action {
    let at = at.field("action");
    match action {
        None | Some("ALLOW") => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("AUDIT") => {
            reading.note(&at, "AUDIT changes no verdict, and nothing is logged for it");
            Action::Audit
        }
        Some("CUSTOM") => {
            reading.warning(
                &at,
                "CUSTOM is not supported, for it asks an external authorizer; what the policy \
                 matches is denied",
            );
            Action::Custom
        }
        Some(other) => {
            reading.error(&at, format_args!("\"{other}\" is none of ALLOW, DENY, AUDIT, CUSTOM"));
            Action::Deny
        }
    }
}

fn is_dry_run(reading: &mut Reading<'_>, annotations: Option<&BTreeMap<String, String>>) -> bool {
    let at = Path::ROOT.fields(&["metadata", "annotations", DRY_RUN_ANNOTATION]);
    match annotations
        .and_then(|annotations| annotations.get(DRY_RUN_ANNOTATION))
        .map(String::as_str)
    {
        None | Some("false") => false,
        Some("true") => {
            reading.note(&at, "the policy is not enforced, as the annotation asks");
            true
        }
        Some(other) => {
            reading.error(&at, format_args!("\"{other}\" is neither \"true\" nor \"false\""));
            false
        }
    }
}

fn read_rule(
    reading: &mut Reading<'_>,
    spec_at: &Path,
    at: &Path,
    rule: &Rule,
) -> AuthorizationRule {
    for (field, is_empty) in [
        ("from", rule.from.as_ref().is_some_and(Vec::is_empty)),
        ("to", rule.to.as_ref().is_some_and(Vec::is_empty)),
    ] {
        if is_empty {
            reading.error(&at.field(field), "is empty; remove it to match everything");
        }
    }
    let mut from = Vec::new();
    for (index, item) in rule.from.iter().flatten().enumerate() {
        let at = at.field("from").index(index).field("source");
        match &item.source {
            Some(source) => from.push(source::source(reading, &at, source)),
            None => reading.error(&at, "missing; an item of `from` has a source"),
        }
    }
    let mut to = Vec::new();
    for (index, item) in rule.to.iter().flatten().enumerate() {
        let at = at.field("to").index(index).field("operation");
        match &item.operation {
            Some(operation) => to.push(source::operation(reading, &at, operation)),
            None => reading.error(&at, "missing; an item of `to` has an operation"),
        }
    }
    let mut needs = match reading.is_poisoned(at, spec_at, ["rules"]) {
        true => Needs::Unsupported,
        false => Needs::L4,
    };
    let mut when = Vec::new();
    for (index, item) in rule.when.iter().flatten().enumerate() {
        match condition::condition(reading, &at.field("when").index(index), item) {
            Ok(condition) => when.push(condition),
            Err(more) => needs = needs.max(more),
        }
    }
    AuthorizationRule { origin: reading.origin(at), from, to, when, needs }
}
