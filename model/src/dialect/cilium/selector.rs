//! Cilium's selectors: labels have a source, and some stand for something else than a pod's
//! label.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::dialect::path::Path;
use crate::dialect::reading::Reading;
use crate::dialect::selector::{self, check_key, check_value};
use crate::mesh::{
    Entity, NAMESPACE_NAME_LABEL, Operator, Peer, Requirement, SERVICE_ACCOUNT_LABEL, Selector,
    Workloads,
};

/// The name of a pod's namespace.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Before the key of a label of a pod's namespace.
const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// The name of a pod's service account.
const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// The name of a pod's cluster.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// What a requirement is on.
enum Label {
    Namespace(Arc<str>),
    ServiceAccount,
    Pod(Arc<str>),
    Reserved(Arc<str>),
    /// Nothing that Weft knows, and why.
    Unsupported(String),
}

/// What a selector says, sorted by what it says it of.
#[derive(Default)]
struct Parsed {
    workloads: Workloads,
    reserved: Vec<(Arc<str>, Operator)>,
    /// How many requirements it has.
    count: usize,
    names_namespace: bool,
    unsupported: Option<(Path, String)>,
}

/// The pods that a policy acts on: of its own namespace, if it has one.
pub(super) fn subject(
    reading: &mut Reading<'_>,
    at: &Path,
    labels: &LabelSelector,
) -> Option<Workloads> {
    let Parsed { mut workloads, reserved, unsupported, .. } = parse(reading, at, labels);
    if let Some((at, reason)) = unsupported {
        reading.error(&at, reason);
        return None;
    }
    if !reserved.is_empty() {
        reading.warning(
            at,
            "reserved labels select no pod; the policy is not enforced on what they stand for",
        );
        return None;
    }
    let namespace = reading.object.name.namespace.clone();
    if !namespace.is_empty() {
        let own = Selector::label(NAMESPACE_NAME_LABEL, &namespace);
        let requirements = &mut workloads.namespace.requirements;
        let is_own_or_other = |requirement: &Requirement| {
            own.requirements.contains(requirement) || &*requirement.key != NAMESPACE_NAME_LABEL
        };
        // Cilium does the same, and warns of it.
        if !requirements.iter().all(is_own_or_other) {
            requirements.retain(is_own_or_other);
            reading.warning(
                at,
                "names a namespace other than the policy's own; that is ignored, for the policy \
                 acts on its own namespace only",
            );
        }
        workloads.namespace.requirements.extend(own.requirements);
    }
    Some(workloads)
}

/// All pods that a policy may act on.
pub(super) fn all(reading: &Reading<'_>) -> Workloads {
    let namespace = &reading.object.name.namespace;
    let namespace = match namespace.is_empty() {
        true => Selector::EVERYTHING,
        false => Selector::label(NAMESPACE_NAME_LABEL, namespace),
    };
    Workloads { namespace, ..Workloads::default() }
}

/// An item of `fromEndpoints` or `toEndpoints`; none, with a finding, if it is not supported.
pub(super) fn peer(reading: &mut Reading<'_>, at: &Path, labels: &LabelSelector) -> Option<Peer> {
    let Parsed { mut workloads, reserved, count, names_namespace, unsupported } =
        parse(reading, at, labels);
    if let Some((at, reason)) = unsupported {
        reading.warning(&at, reason);
        return None;
    }
    if let Some((name, operator)) = reserved.first() {
        let is_presence = match operator {
            Operator::Exists => true,
            Operator::In(values) => values.iter().all(|value| value.is_empty()),
            Operator::NotIn(_) | Operator::DoesNotExist => false,
        };
        let entity = entity(name).filter(|_| is_presence && count == 1);
        if entity.is_none() {
            reading.warning(
                at,
                "reserved labels are supported only alone, as `reserved:host: \"\"`; what holds \
                 this allows nothing",
            );
        }
        return entity.map(Peer::Entity);
    }
    add_own_namespace(reading, &mut workloads, names_namespace);
    Some(Peer::Workloads(workloads))
}

/// Pods that do not meet an item of `fromRequires` or `toRequires`: any of these.
pub(super) fn unmet(
    reading: &mut Reading<'_>,
    at: &Path,
    labels: &LabelSelector,
) -> Option<Vec<Peer>> {
    let parsed = parse(reading, at, labels);
    let mut workloads = parsed.workloads;
    if let Some((at, reason)) = parsed.unsupported {
        reading.warning(&at, reason);
        return None;
    }
    if !parsed.reserved.is_empty() {
        reading
            .warning(at, "reserved labels are not supported here; what holds this allows nothing");
        return None;
    }
    add_own_namespace(reading, &mut workloads, parsed.names_namespace);
    let not = |requirement: &Requirement| Selector {
        requirements: vec![Requirement {
            key: Arc::clone(&requirement.key),
            operator: match &requirement.operator {
                Operator::In(values) => Operator::NotIn(values.clone()),
                Operator::NotIn(values) => Operator::In(values.clone()),
                Operator::Exists => Operator::DoesNotExist,
                Operator::DoesNotExist => Operator::Exists,
            },
        }],
    };
    let any = Workloads::default;
    let namespace = workloads.namespace.requirements.iter();
    let namespace = namespace.map(|unmet| Workloads { namespace: not(unmet), ..any() });
    let pod = workloads.pod.requirements.iter();
    let pod = pod.map(|unmet| Workloads { pod: not(unmet), ..any() });
    let account = workloads.service_account.requirements.iter();
    let account = account.map(|unmet| Workloads { service_account: not(unmet), ..any() });
    Some(namespace.chain(pod).chain(account).map(Peer::Workloads).collect())
}

/// Labels of services.
pub(super) fn services(
    reading: &mut Reading<'_>,
    at: &Path,
    labels: &LabelSelector,
) -> Option<Selector> {
    let parsed = parse(reading, at, labels);
    let is_plain = parsed.unsupported.is_none()
        && parsed.reserved.is_empty()
        && parsed.workloads.pod.requirements.len() == parsed.count;
    if !is_plain {
        reading.warning(at, "only labels of the service are supported here; it selects nothing");
        return None;
    }
    Some(parsed.workloads.pod)
}

/// An entity by its name in `fromEntities` or after `reserved:`.
pub(super) fn entity(name: &str) -> Option<Entity> {
    Some(match name {
        "all" => Entity::All,
        "world" => Entity::World,
        "world-ipv4" => Entity::WorldIpv4,
        "world-ipv6" => Entity::WorldIpv6,
        "cluster" => Entity::Cluster,
        "host" => Entity::Host,
        "remote-node" => Entity::RemoteNode,
        "kube-apiserver" => Entity::KubeApiserver,
        "unmanaged" => Entity::Unmanaged,
        "health" | "init" | "ingress" | "none" => Entity::None,
        _ => return None,
    })
}

/// A selector of a namespaced policy means its own namespace unless it names another.
fn add_own_namespace(reading: &Reading<'_>, workloads: &mut Workloads, names_namespace: bool) {
    let namespace = &reading.object.name.namespace;
    if !namespace.is_empty() && !names_namespace {
        let own = Selector::label(NAMESPACE_NAME_LABEL, namespace);
        workloads.namespace.requirements.extend(own.requirements);
    }
}

fn parse(reading: &mut Reading<'_>, at: &Path, labels: &LabelSelector) -> Parsed {
    let mut parsed = Parsed::default();
    let match_labels = at.field("matchLabels");
    for (key, value) in labels.match_labels.iter().flatten() {
        let at = match_labels.field(key);
        check_value(reading, &at, value);
        parsed.add(reading, &at, key, Operator::In(vec![value.as_str().into()]));
    }
    let expressions = at.field("matchExpressions");
    for (index, expression) in labels.match_expressions.iter().flatten().enumerate() {
        let at = expressions.index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        if let Some(operator) = selector::operator(reading, &at, &expression.operator, values) {
            parsed.add(reading, &at.field("key"), &expression.key, operator);
        }
    }
    parsed
}

impl Parsed {
    fn add(&mut self, reading: &mut Reading<'_>, at: &Path, key: &str, operator: Operator) {
        self.count += 1;
        let selector = match label(key) {
            Label::Unsupported(reason) => {
                self.unsupported = Some((at.clone(), reason));
                return;
            }
            Label::Reserved(name) => return self.reserved.push((name, operator)),
            Label::Namespace(key) => {
                self.names_namespace = true;
                (&mut self.workloads.namespace, key)
            }
            Label::ServiceAccount => {
                (&mut self.workloads.service_account, SERVICE_ACCOUNT_LABEL.into())
            }
            Label::Pod(key) => (&mut self.workloads.pod, key),
        };
        let (selector, key) = selector;
        check_key(reading, at, &key);
        selector.requirements.push(Requirement { key, operator });
    }
}

fn label(key: &str) -> Label {
    let (source, key) = key.split_once(':').unwrap_or(("any", key));
    match (source, key) {
        ("reserved", name) => Label::Reserved(name.into()),
        ("k8s" | "any", NAMESPACE) => Label::Namespace(NAMESPACE_NAME_LABEL.into()),
        ("k8s" | "any", SERVICE_ACCOUNT) => Label::ServiceAccount,
        ("k8s" | "any", CLUSTER) => Label::Unsupported(format!(
            "{CLUSTER} is not supported: a mesh is one cluster; remove the label. What holds it \
             allows nothing"
        )),
        ("k8s" | "any", key) => match key.strip_prefix(NAMESPACE_LABELS) {
            Some(key) => Label::Namespace(key.into()),
            None => Label::Pod(key.into()),
        },
        (source, _) => Label::Unsupported(format!(
            "labels of source \"{source}\" are not known here, only k8s, any and reserved. What \
             holds it allows nothing"
        )),
    }
}
