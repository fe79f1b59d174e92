//! AuthorizationPolicy, as Istio's reference has it: "1. If there are any CUSTOM policies that
//! match the request, evaluate and deny the request if the evaluation result is deny. 2. If
//! there are any DENY policies that match the request, deny the request. 3. If there are no
//! ALLOW policies for the workload, allow the request. 4. If any of the ALLOW policies match
//! the request, allow the request. 5. Deny the request."

use std::net::IpAddr;

use ipnet::IpNet;
use weft_common::Reason;

use super::network::{contains, unmet};
use super::party::{End, Ends};
use super::{Connection, Outcome};
use crate::mesh::{
    Action, AuthorizationPolicy, AuthorizationRule, Condition, Mesh, Name, Needs, Operation, Pod,
    Scope, Source, StringMatch,
};

/// What the AuthorizationPolicies of `pod` say of a TCP connection to it.
pub(super) fn judge(mesh: &Mesh, pod: &Pod, ends: &Ends, connection: &Connection) -> Outcome {
    let acting = acting_on(mesh, pod);
    if acting.is_empty() {
        return Outcome::UNRESTRICTED;
    }
    if ends.source.is_node(&pod.node) {
        return Outcome::because(Reason::OwnNode);
    }

    let facts = Facts::of(mesh, ends, connection);
    let denying = acting.iter().filter(|policy| policy.action != Action::Allow);
    for policy in denying {
        for rule in &policy.rules {
            if let Some(needs) = facts.matched_by(rule) {
                let reason = match policy.action {
                    Action::Custom => Reason::Unsupported,
                    _ => unmet(needs).unwrap_or(Reason::RuleDenies),
                };
                return Outcome::of(reason, &rule.origin);
            }
        }
    }

    let allowing = || acting.iter().filter(|policy| policy.action == Action::Allow);
    let Some(first) = allowing().next() else { return Outcome::UNRESTRICTED };
    let matching = || {
        allowing()
            .flat_map(|policy| &policy.rules)
            .filter_map(|rule| Some((rule, facts.matched_by(rule)?)))
    };
    if let Some((rule, _)) = matching().find(|(_, needs)| *needs == Needs::L4) {
        return Outcome::of(Reason::Rule, &rule.origin);
    }
    match matching().next() {
        Some((rule, needs)) => Outcome::of(unmet(needs).unwrap_or(Reason::NoRule), &rule.origin),
        None => Outcome::of(Reason::NoRule, &first.origin),
    }
}

/// Whether an AuthorizationPolicy acts on the pod.
pub(super) fn restricts(mesh: &Mesh, pod: &Pod) -> bool {
    !acting_on(mesh, pod).is_empty()
}

fn acting_on<'a>(mesh: &'a Mesh, pod: &Pod) -> Vec<&'a AuthorizationPolicy> {
    mesh.authorization
        .values()
        .map(|policy| &**policy)
        .filter(|policy| policy.action != Action::Audit && acts_on(mesh, &policy.scope, pod))
        .collect()
}

fn acts_on(mesh: &Mesh, scope: &Scope, pod: &Pod) -> bool {
    let own = &pod.name.namespace;
    match scope {
        Scope::Mesh => true,
        Scope::Selected(selector) => selector.matches(&pod.labels),
        Scope::Namespace(namespace) => namespace == own,
        Scope::Workload(namespace, selector) => namespace == own && selector.matches(&pod.labels),
        Scope::Services(namespace, names) => names.iter().any(|name| {
            let name = Name { namespace: namespace.clone(), name: name.clone() };
            mesh.services.get(&name).is_some_and(|service| mesh.is_behind(pod, service))
        }),
        Scope::Nothing => false,
    }
}

/// What is known of a connection where it is authorized.
struct Facts<'a> {
    /// Trust domain, namespace and service account of the peer, if its identity is proven.
    identity: Option<Identity>,
    source: &'a End,
    destination: &'a End,
    port: u16,
}

struct Identity {
    principal: String,
    namespace: String,
    service_account: String,
}

impl<'a> Facts<'a> {
    fn of(mesh: &Mesh, ends: &'a Ends, connection: &Connection) -> Self {
        let identity = ends.source.pod().filter(|_| connection.proven).map(|pod| Identity {
            principal: mesh.principal(pod),
            namespace: pod.name.namespace.to_string(),
            service_account: pod.service_account.to_string(),
        });
        Self {
            identity,
            source: &ends.source,
            destination: &ends.destination,
            port: connection.port,
        }
    }

    /// None if the rule does not match by what L4 knows of it; otherwise what it needs to match
    /// indeed: `L4` where some part does that needs no more.
    fn matched_by(&self, rule: &AuthorizationRule) -> Option<Needs> {
        let source =
            any(&rule.from, |source| self.source_matches(source).then_some(source.needs_http))?;
        let operation = any(&rule.to, |operation| {
            self.operation_matches(operation).then_some(operation.needs_http)
        })?;
        if !rule.when.iter().all(|condition| self.condition_holds(condition)) {
            return None;
        }
        Some(match rule.needs {
            Needs::L4 if source || operation => Needs::Http,
            needs => needs,
        })
    }

    fn source_matches(&self, source: &Source) -> bool {
        let is = |(namespace, name): &(std::sync::Arc<str>, std::sync::Arc<str>)| {
            self.identity.as_ref().is_some_and(|identity| {
                *identity.namespace == **namespace && *identity.service_account == **name
            })
        };
        within(&source.principals, &source.not_principals, |m| self.principal_is(m))
            && within(&source.namespaces, &source.not_namespaces, |m| self.namespace_is(m))
            && within(&source.service_accounts, &source.not_service_accounts, is)
            && within(&source.ip_blocks, &source.not_ip_blocks, |b| in_block(self.source, b))
    }

    fn operation_matches(&self, operation: &Operation) -> bool {
        within(&operation.ports, &operation.not_ports, |port| *port == self.port)
    }

    fn condition_holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::SourceIp { values, not_values } => {
                within(values, not_values, |block| in_block(self.source, block))
            }
            Condition::SourceNamespace { values, not_values } => {
                within(values, not_values, |m| self.namespace_is(m))
            }
            Condition::SourcePrincipal { values, not_values } => {
                within(values, not_values, |m| self.principal_is(m))
            }
            Condition::DestinationIp { values, not_values } => {
                within(values, not_values, |block| in_block(self.destination, block))
            }
            Condition::DestinationPort { values, not_values } => {
                within(values, not_values, |port| *port == self.port)
            }
        }
    }

    fn principal_is(&self, wanted: &StringMatch) -> bool {
        self.identity.as_ref().is_some_and(|identity| string_matches(wanted, &identity.principal))
    }

    fn namespace_is(&self, wanted: &StringMatch) -> bool {
        self.identity.as_ref().is_some_and(|identity| string_matches(wanted, &identity.namespace))
    }
}

/// Any of `values` if there are any, and none of `not_values`.
fn within<T>(values: &[T], not_values: &[T], is: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&is)) && !not_values.iter().any(&is)
}

/// Whether the best of the parts that match needs HTTP; none if no part matches. Without parts
/// everything matches.
fn any<T>(parts: &[T], matched: impl Fn(&T) -> Option<bool>) -> Option<bool> {
    if parts.is_empty() {
        return Some(false);
    }
    parts.iter().filter_map(matched).min()
}

/// As Istio matches a value.
pub(super) fn string_matches(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(exact) => **exact == *text,
        StringMatch::Prefix(prefix) => text.starts_with(&**prefix),
        StringMatch::Suffix(suffix) => text.ends_with(&**suffix),
        StringMatch::Present => !text.is_empty(),
    }
}

fn in_block(end: &End, block: &IpNet) -> bool {
    end.address.is_some_and(|address: IpAddr| contains(block, address))
}
