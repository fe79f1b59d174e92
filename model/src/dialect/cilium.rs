//! Cilium's policies at L3/L4 (docs.cilium.io, "Layer 3 Policies", "Layer 4 Policies", "Deny
//! Policies"; `pkg/policy/api` says the rest).

mod ports;
mod rule;
pub(super) mod schema;
mod selector;
pub(super) mod shape;
#[cfg(test)]
mod tests;

use serde::Deserialize;

use self::rule::{Side, read_rule};
use self::schema::{CiliumPolicy, PolicySpec};
use self::shape::{Section, Shape};
use super::path::Path;
use super::reading::{Reading, Unknown};
use crate::mesh::{Dialect, Direction, Effect, Needs, Policy, Resource, Rule, Workloads};

/// A CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy: one policy for `spec` and one for
/// each of `specs`.
pub(super) fn policy(reading: &mut Reading<'_>) -> Vec<Resource> {
    let Some(policy) = reading.decode::<CiliumPolicy>(Unknown::Narrows) else { return Vec::new() };
    let root = Path::ROOT;
    let specs_at = root.field("specs");
    let mut specs: Vec<(Path, PolicySpec)> = Vec::new();
    specs.extend(policy.spec.map(|spec| (root.field("spec"), spec)));
    let listed = policy.specs.unwrap_or_default().into_iter().enumerate();
    specs.extend(listed.map(|(index, spec)| (specs_at.index(index), spec)));
    if specs.is_empty() {
        reading.error(&root.field("spec"), "missing; a policy has a spec, or a list of specs");
    }
    specs.into_iter().filter_map(|(at, spec)| read_spec(reading, &at, spec.into())).collect()
}

/// What a `spec` says; none where it is about nodes, or is wrong as a whole.
pub(super) fn read_spec(reading: &mut Reading<'_>, at: &Path, spec: Shape) -> Option<Resource> {
    let selector_at = at.field("endpointSelector");
    let node_selector_at = at.field("nodeSelector");
    let subject = match (&spec.endpoint_selector, &spec.node_selector) {
        (Some(_), Some(_)) => {
            reading.error(&node_selector_at, "stands beside endpointSelector; remove one of them");
            return None;
        }
        (None, None) => {
            reading.error(
                &selector_at,
                "missing; `endpointSelector: {}` selects every pod of the policy's namespace",
            );
            return None;
        }
        (None, Some(_)) => {
            reading.warning(
                &node_selector_at,
                "host policies are not supported and not enforced: traffic of nodes is not narrowed",
            );
            return None;
        }
        (Some(labels), None) => selector::subject(reading, &selector_at, labels)?,
    };

    let isolates_ingress =
        spec.default_deny.ingress.unwrap_or_else(|| spec.speaks_of(Direction::Ingress));
    let isolates_egress =
        spec.default_deny.egress.unwrap_or_else(|| spec.speaks_of(Direction::Egress));
    let mut rules = Vec::new();
    let mut sides = 0;
    let sections = spec.sections();
    let names = sections.each_ref().map(|section| section.name);
    for Section { name, direction, effect, sides: list } in sections {
        let Some(list) = list else { continue };
        let section_at = at.field(name);
        if list.is_empty() {
            reading.note(
                &section_at,
                format_args!("is empty and isolates nothing; `{name}: [{{}}]` does"),
            );
        }
        for (index, side) in list.into_iter().enumerate() {
            sides += 1;
            let side_at = section_at.index(index);
            let is_known = !reading.is_poisoned(&side_at, at, names);
            rules.extend(read_rule(
                reading,
                Side { at: &side_at, direction, effect, is_known, fields: side },
            ));
        }
    }
    if sides == 0 {
        reading.warning(at, "has no rules and therefore no effect; add ingress or egress");
    }
    Some(Resource::from(Policy {
        origin: reading.origin(at),
        subject,
        isolates_ingress,
        isolates_egress,
        dialect: Dialect::Cilium,
        rules,
    }))
}

/// Policies that stand for one that cannot be read. They isolate what it selects; where it has
/// denying rules, or may have some in what could not be parsed, they deny everything.
pub(super) fn deny_fallback(reading: &mut Reading<'_>) -> Vec<Resource> {
    let root = Path::ROOT;
    let specs_at = root.field("specs");
    let mut specs = Vec::new();
    if reading.suspect.iter().any(|path| specs_at.contains(path)) {
        // There may be more of them than were read.
        return vec![Resource::from(fallback_policy(reading, &specs_at, None, [true, true]))];
    }
    if reading.get(&root.field("spec")).is_some_and(|spec| !spec.is_null()) {
        specs.push(root.field("spec"));
    }
    let listed = reading.get(&specs_at).and_then(|specs| specs.as_array());
    let listed = listed.map_or(0, Vec::len);
    specs.extend((0..listed).map(|index| specs_at.index(index)));
    if specs.is_empty() {
        specs.push(root.field("spec"));
    }
    specs.iter().filter_map(|at| fallback_of(reading, at)).map(Resource::from).collect()
}

fn fallback_of(reading: &mut Reading<'_>, at: &Path) -> Option<Policy> {
    let spec = reading.get(at);
    let has = |field: &str| spec.and_then(|spec| spec.get(field)).is_some();
    let is_cut = reading.is_cut;
    if has("nodeSelector") && !has("endpointSelector") && !is_cut {
        return None;
    }
    let denies = [is_cut || has("ingressDeny"), is_cut || has("egressDeny")];
    let subject = fallback_subject(reading, at);
    Some(fallback_policy(reading, at, subject, denies))
}

fn fallback_policy(
    reading: &Reading<'_>,
    at: &Path,
    subject: Option<Workloads>,
    denies: [bool; 2],
) -> Policy {
    let rules = [Direction::Ingress, Direction::Egress]
        .into_iter()
        .zip(denies)
        .filter(|(_, denies)| *denies)
        .map(|(direction, _)| Rule {
            origin: reading.origin(at),
            direction,
            effect: Effect::Deny,
            peers: None,
            ports: None,
            needs: Needs::Unsupported,
        })
        .collect();
    Policy {
        origin: reading.origin(at),
        subject: subject.unwrap_or_else(|| selector::all(reading)),
        isolates_ingress: true,
        isolates_egress: true,
        dialect: Dialect::Cilium,
        rules,
    }
}

/// What the policy acts on, if that much can be trusted.
fn fallback_subject(reading: &mut Reading<'_>, at: &Path) -> Option<Workloads> {
    let at = at.field("endpointSelector");
    if reading.is_suspect(&at) {
        return None;
    }
    let labels = Deserialize::deserialize(reading.get(&at)?).ok()?;
    reading.quietly(|reading| selector::subject(reading, &at, &labels))
}
