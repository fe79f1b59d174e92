use std::net::IpAddr;

use k8s_openapi::api::{core, discovery};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::protocol;
use super::workload::not_a_port_name;
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::dialect::selector::{self, labels};
use crate::mesh::{
    EndpointSlice, Operator, PortRef, Requirement, Resource, Selector, Service, ServicePort,
    SliceEndpoint,
};

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, where it is absent.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Names the service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

pub(in crate::dialect) fn service(reading: &mut Reading<'_>) -> Option<Resource> {
    let core::v1::Service { metadata, spec, status } = reading.decode(Unknown::Ignored)?;
    let at = Path::ROOT.field("spec");
    let spec = spec.unwrap_or_default();

    let is_external = spec.type_.as_deref() == Some("ExternalName");
    let addresses = if is_external { Vec::new() } else { cluster_ips(reading, &at, &spec) };
    let external = if is_external {
        Vec::new()
    } else {
        external(reading, &spec, &status.unwrap_or_default())
    };
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let at = at.field("ports").index(index);
        ports.extend(service_port(reading, &at, port));
    }
    if ports.is_empty() && !addresses.is_empty() && !reading.has_error() {
        reading.error(&at.field("ports"), "missing; a service with an address has a port");
    }
    let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty() && !is_external);
    let selector = selector.map(|labels| Selector {
        requirements: labels
            .iter()
            .map(|(key, value)| Requirement {
                key: key.as_str().into(),
                operator: Operator::In(vec![value.as_str().into()]),
            })
            .collect(),
    });

    Some(Resource::from(Service {
        name: reading.object.name.clone(),
        labels: labels(metadata.labels.as_ref()),
        selector,
        addresses,
        external,
        ports,
        affinity_seconds: affinity(reading, &at, &spec),
        internal_local: internal_local(reading, &at, &spec),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        origin: reading.origin(&at),
    }))
}

fn cluster_ips(reading: &mut Reading<'_>, at: &Path, spec: &core::v1::ServiceSpec) -> Vec<IpAddr> {
    let is_address = |ip: &str| !ip.is_empty() && ip != "None";
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    if ips.is_empty() {
        let ip = spec.cluster_ip.as_deref().filter(|ip| is_address(ip));
        let at = at.field("clusterIP");
        return ip.and_then(|ip| selector::address(reading, &at, ip)).into_iter().collect();
    }
    let at = at.field("clusterIPs");
    ips.iter()
        .enumerate()
        .filter(|(_, ip)| is_address(ip))
        .filter_map(|(index, ip)| selector::address(reading, &at.index(index), ip))
        .collect()
}

/// Addresses from outside the cluster at which nodes serve it. A load balancer that is a proxy of
/// its own (`ipMode: Proxy`) is left to see its traffic.
fn external(
    reading: &mut Reading<'_>,
    spec: &core::v1::ServiceSpec,
    status: &core::v1::ServiceStatus,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let at = Path::ROOT.fields(&["spec", "externalIPs"]);
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        addresses.extend(selector::address(reading, &at.index(index), ip));
    }
    let at = Path::ROOT.fields(&["status", "loadBalancer", "ingress"]);
    let balancer = status.load_balancer.as_ref().and_then(|balancer| balancer.ingress.as_ref());
    for (index, ingress) in balancer.into_iter().flatten().enumerate() {
        let ip = ingress.ip.as_deref().filter(|ip| !ip.is_empty());
        if let Some(ip) = ip.filter(|_| ingress.ip_mode.as_deref() != Some("Proxy")) {
            addresses.extend(selector::address(reading, &at.index(index).field("ip"), ip));
        }
    }
    addresses
}

fn service_port(
    reading: &mut Reading<'_>,
    at: &Path,
    port: &core::v1::ServicePort,
) -> Option<ServicePort> {
    let protocol = protocol(reading, &at.field("protocol"), port.protocol.as_deref());
    let number = selector::port(reading, &at.field("port"), i64::from(port.port));
    let target_at = at.field("targetPort");
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => number.map(PortRef::Number),
        Some(IntOrString::Int(target)) => {
            selector::port(reading, &target_at, i64::from(*target)).map(PortRef::Number)
        }
        Some(IntOrString::String(name)) if name.is_empty() => number.map(PortRef::Number),
        Some(IntOrString::String(name)) => {
            if !selector::is_port_name(name) {
                reading.error(&target_at, not_a_port_name(name));
            }
            Some(PortRef::Name(name.as_str().into()))
        }
    };
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(node_port) => selector::port(reading, &at.field("nodePort"), i64::from(node_port)),
    };
    Some(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: protocol?,
        port: number?,
        target: target?,
        node_port,
    })
}

fn affinity(reading: &mut Reading<'_>, at: &Path, spec: &core::v1::ServiceSpec) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            let reason = format!("\"{other}\" is neither ClientIP nor None");
            reading.error(&at.field("sessionAffinity"), reason);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client_ip.and_then(|config| config.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY_SECONDS);
    };
    let valid = u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
    if valid.is_none() {
        reading.error(
            &at.fields(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]),
            format_args!("{seconds} is out of range; it goes from 1 to 86400"),
        );
    }
    valid
}

fn internal_local(reading: &mut Reading<'_>, at: &Path, spec: &core::v1::ServiceSpec) -> bool {
    match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            let reason = format!("\"{other}\" is neither Cluster nor Local");
            reading.error(&at.field("internalTrafficPolicy"), reason);
            false
        }
    }
}

pub(in crate::dialect) fn endpoint_slice(reading: &mut Reading<'_>) -> Option<Resource> {
    let slice: discovery::v1::EndpointSlice = reading.decode(Unknown::Ignored)?;
    let root = Path::ROOT;
    let is_fqdn = slice.address_type == "FQDN";
    if is_fqdn {
        reading.note(&root.field("addressType"), "endpoints by DNS name are not read");
    } else if !matches!(slice.address_type.as_str(), "IPv4" | "IPv6") {
        let reason = format!("\"{}\" is none of IPv4, IPv6, FQDN", slice.address_type);
        reading.error(&root.field("addressType"), reason);
    }

    let mut ports = std::collections::BTreeMap::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let at = root.field("ports").index(index);
        let protocol = protocol(reading, &at.field("protocol"), port.protocol.as_deref());
        // A port without number stands for all ports, which no Service has.
        let Some(number) = port.port else { continue };
        let number = selector::port(reading, &at.field("port"), i64::from(number));
        if let (Some(protocol), Some(number)) = (protocol, number) {
            ports.insert(port.name.as_deref().unwrap_or_default().into(), (protocol, number));
        }
    }

    let mut endpoints = Vec::new();
    for (index, endpoint) in slice.endpoints.iter().enumerate().filter(|_| !is_fqdn) {
        let at = root.field("endpoints").index(index).field("addresses");
        let mut addresses = Vec::new();
        for (index, address) in endpoint.addresses.iter().enumerate() {
            addresses.extend(selector::address(reading, &at.index(index), address));
        }
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let hints = endpoint.hints.as_ref();
        let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
        endpoints.push(SliceEndpoint {
            addresses,
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or_default(),
            node: endpoint.node_name.as_deref().map(Into::into),
            zones: zones.map(|zone| zone.name.as_str().into()).collect(),
            nodes: nodes.map(|node| node.name.as_str().into()).collect(),
        });
    }
    let labels = slice.metadata.labels.unwrap_or_default();
    Some(Resource::from(EndpointSlice {
        name: reading.object.name.clone(),
        service: labels.get(SERVICE_LABEL).map(|name| name.as_str().into()),
        ports,
        endpoints,
    }))
}
