use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;

use super::enrolment::{self, Holder};
use super::schema;
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::dialect::selector::{self, labels};
use crate::mesh::{
    NAMESPACE_NAME_LABEL, NamedPort, Namespace, Node, Pod, Resource, ServiceAccount,
};

/// Annotation that the kubelet gives the object of a static pod: the uid by which it runs it.
pub(in crate::dialect) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Annotation of a pod: `"false"` turns acceleration off.
pub(in crate::dialect) const ACCELERATE_ANNOTATION: &str = "weft.dev/accelerate";

pub(in crate::dialect) fn namespace(reading: &mut Reading<'_>) -> Option<Resource> {
    let namespace: v1::Namespace = reading.decode(Unknown::Ignored)?;
    let name = Arc::clone(&reading.object.name.name);
    let mut labels = labels(namespace.metadata.labels.as_ref());
    let annotations = namespace.metadata.annotations.unwrap_or_default();
    let enrolled = enrolment::of(reading, Holder::Namespace, &labels, &annotations);
    // The API server sets this label on every namespace, whatever the manifest says.
    labels.insert(NAMESPACE_NAME_LABEL.into(), Arc::clone(&name));
    Some(Resource::Namespace(Namespace { name, labels, enrolled }))
}

pub(in crate::dialect) fn node(reading: &mut Reading<'_>) -> Option<Resource> {
    let node: schema::Node = reading.decode(Unknown::Unread(schema::READ))?;

    let mut addresses = Vec::new();
    let at = Path::ROOT.fields(&["status", "addresses"]);
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref());
    for (index, address) in listed.unwrap_or_default().iter().enumerate() {
        if matches!(address.type_.as_str(), "InternalIP" | "ExternalIP") {
            let at = at.index(index).field("address");
            addresses.extend(selector::address(reading, &at, &address.address));
        }
    }

    let mut pod_cidrs = Vec::new();
    if let Some(spec) = &node.spec {
        let at = Path::ROOT.field("spec");
        match (&spec.pod_cidrs, &spec.pod_cidr) {
            (Some(cidrs), _) if !cidrs.is_empty() => {
                for (index, cidr) in cidrs.iter().enumerate() {
                    let at = at.field("podCIDRs").index(index);
                    pod_cidrs.extend(selector::cidr(reading, &at, cidr));
                }
            }
            (_, Some(cidr)) if !cidr.is_empty() => {
                pod_cidrs.extend(selector::cidr(reading, &at.field("podCIDR"), cidr));
            }
            _ => {}
        }
    }
    let name = Arc::clone(&reading.object.name.name);
    let labels = labels(node.metadata.labels.as_ref());
    Some(Resource::Node(Node { name, labels, addresses, pod_cidrs }))
}

pub(in crate::dialect) fn service_account(reading: &mut Reading<'_>) -> Option<Resource> {
    let account: v1::ServiceAccount = reading.decode(Unknown::Ignored)?;
    let labels = labels(account.metadata.labels.as_ref());
    Some(Resource::ServiceAccount(ServiceAccount { name: reading.object.name.clone(), labels }))
}

pub(in crate::dialect) fn pod(reading: &mut Reading<'_>) -> Option<Resource> {
    let schema::Pod { metadata, spec, status } = reading.decode(Unknown::Unread(schema::READ))?;
    let spec_at = Path::ROOT.field("spec");
    let metadata_at = Path::ROOT.field("metadata");
    let Some(spec) = spec else {
        reading.error(&spec_at, "missing; a pod has a spec with containers");
        return None;
    };
    let status = status.unwrap_or_default();

    if metadata.uid.as_deref().is_none_or(str::is_empty) {
        reading.note(
            &metadata_at.field("uid"),
            "missing: the pod's cgroup is found by its uid, so its processes are not recognised",
        );
    }
    let account_at = spec_at.field("serviceAccountName");
    let account = spec
        .service_account_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .or(spec.service_account.as_deref().filter(|name| !name.is_empty()))
        .unwrap_or("default");
    if !selector::is_dns_subdomain(account) {
        reading.error(&account_at, format_args!("\"{account}\" is no name of a service account"));
    }
    let addresses = pod_addresses(reading, &status);
    let named_ports = named_ports(reading, &spec);
    let labels = labels(metadata.labels.as_ref());
    let annotations = metadata.annotations.unwrap_or_default();
    let enrolled = enrolment::of(reading, Holder::Pod, &labels, &annotations);
    // A static pod's cgroup is not named after the object that stands for it.
    let uid = annotations.get(MIRROR_ANNOTATION).cloned().or(metadata.uid).unwrap_or_default();
    let accelerate =
        annotations.get(ACCELERATE_ANNOTATION).is_none_or(|value| accelerate(reading, value));

    Some(Resource::from(Pod {
        name: reading.object.name.clone(),
        uid: uid.into(),
        labels: Arc::new(labels),
        node: spec.node_name.unwrap_or_default().into(),
        service_account: account.into(),
        addresses,
        host_network: spec.host_network.unwrap_or_default(),
        named_ports,
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
        enrolled,
        accelerate,
    }))
}

fn pod_addresses(reading: &mut Reading<'_>, status: &schema::PodStatus) -> Vec<IpAddr> {
    let at = Path::ROOT.field("status");
    let ips = status.pod_ips.as_deref().unwrap_or_default();
    if ips.is_empty() {
        let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty());
        let at = at.field("podIP");
        return ip.and_then(|ip| selector::address(reading, &at, ip)).into_iter().collect();
    }
    let at = at.field("podIPs");
    ips.iter()
        .enumerate()
        .filter_map(|(index, ip)| selector::address(reading, &at.index(index).field("ip"), &ip.ip))
        .collect()
}

/// Of containers, and of init containers that go on running beside them (sidecars).
fn named_ports(reading: &mut Reading<'_>, spec: &schema::PodSpec) -> Vec<NamedPort> {
    let mut named = Vec::new();
    let containers_at = Path::ROOT.fields(&["spec", "containers"]);
    let containers = spec.containers.iter().flatten().enumerate();
    let init_at = Path::ROOT.fields(&["spec", "initContainers"]);
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
    let all = containers
        .map(|(index, container)| (containers_at.index(index), container))
        .chain(sidecars.map(|(index, container)| (init_at.index(index), container)));
    for (at, container) in all {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let at = at.field("ports").index(index);
            let protocol =
                super::protocol(reading, &at.field("protocol"), port.protocol.as_deref());
            let number = i64::from(port.container_port);
            let number = selector::port(reading, &at.field("containerPort"), number);
            let name = port.name.as_deref().filter(|name| !name.is_empty());
            if let Some(name) = name.filter(|name| !selector::is_port_name(name)) {
                reading.error(&at.field("name"), not_a_port_name(name));
            }
            if let (Some(protocol), Some(port), Some(name)) = (protocol, number, name) {
                named.push(NamedPort { name: name.into(), protocol, port });
            }
        }
    }
    named
}

pub(super) fn not_a_port_name(name: &str) -> String {
    format!(
        "\"{name}\" is no name of a port: at most 15 lower-case letters, digits and '-', with at \
         least one letter"
    )
}

fn accelerate(reading: &mut Reading<'_>, value: &str) -> bool {
    match value {
        "true" => true,
        "false" => false,
        _ => {
            reading.warning(
                &Path::ROOT.fields(&["metadata", "annotations", ACCELERATE_ANNOTATION]),
                format_args!("\"{value}\" is neither \"true\" nor \"false\"; it is ignored"),
            );
            true
        }
    }
}
