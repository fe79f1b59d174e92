//! The fields of `cilium.io/v2` policies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use super::shape::{DefaultDeny, Shape, SideFields};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "fields are named so that they are known")]
pub(super) struct CiliumPolicy {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    pub spec: Option<PolicySpec>,
    pub specs: Option<Vec<PolicySpec>>,
    status: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "fields are named so that they are known")]
pub(super) struct PolicySpec {
    pub endpoint_selector: Option<LabelSelector>,
    pub node_selector: Option<LabelSelector>,
    ingress: Option<Vec<IngressRule>>,
    ingress_deny: Option<Vec<IngressRule>>,
    egress: Option<Vec<EgressRule>>,
    egress_deny: Option<Vec<EgressRule>>,
    pub enable_default_deny: Option<DefaultDeny>,
    labels: Option<Value>,
    description: Option<Value>,
    log: Option<Value>,
}

/// An item of `ingress` or `ingressDeny`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressRule {
    from_endpoints: Option<Vec<LabelSelector>>,
    from_requires: Option<Vec<LabelSelector>>,
    #[serde(rename = "fromCIDR")]
    from_cidr: Option<Vec<String>>,
    #[serde(rename = "fromCIDRSet")]
    from_cidr_set: Option<Vec<CidrRule>>,
    from_entities: Option<Vec<String>>,
    from_groups: Option<Value>,
    from_nodes: Option<Value>,
    to_ports: Option<Vec<PortRule>>,
    icmps: Option<Value>,
    authentication: Option<Authentication>,
}

/// An item of `egress` or `egressDeny`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EgressRule {
    to_endpoints: Option<Vec<LabelSelector>>,
    to_requires: Option<Vec<LabelSelector>>,
    #[serde(rename = "toCIDR")]
    to_cidr: Option<Vec<String>>,
    #[serde(rename = "toCIDRSet")]
    to_cidr_set: Option<Vec<CidrRule>>,
    to_entities: Option<Vec<String>>,
    to_services: Option<Vec<ServiceRule>>,
    to_groups: Option<Value>,
    to_nodes: Option<Value>,
    #[serde(rename = "toFQDNs")]
    to_fqdns: Option<Value>,
    to_ports: Option<Vec<PortRule>>,
    icmps: Option<Value>,
    authentication: Option<Authentication>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::dialect) struct CidrRule {
    pub cidr: Option<String>,
    pub except: Option<Vec<String>>,
    pub cidr_group_ref: Option<String>,
    pub cidr_group_selector: Option<Value>,
}

#[derive(Clone, Deserialize)]
pub(in crate::dialect) struct ServiceRule {
    #[serde(rename = "k8sService")]
    pub by_name: Option<ServiceName>,
    #[serde(rename = "k8sServiceSelector")]
    pub by_labels: Option<ServiceLabels>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::dialect) struct ServiceName {
    pub service_name: Option<String>,
    pub namespace: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(in crate::dialect) struct ServiceLabels {
    pub selector: Option<LabelSelector>,
    pub namespace: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::dialect) struct PortRule {
    pub ports: Option<Vec<PortProtocol>>,
    pub rules: Option<L7Rules>,
    #[serde(rename = "terminatingTLS")]
    pub terminating_tls: Option<Value>,
    #[serde(rename = "originatingTLS")]
    pub originating_tls: Option<Value>,
    pub server_names: Option<Vec<String>>,
    pub listener: Option<Value>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::dialect) struct PortProtocol {
    pub port: Option<String>,
    pub end_port: Option<i64>,
    pub protocol: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(in crate::dialect) struct L7Rules {
    pub http: Option<Vec<Value>>,
    pub kafka: Option<Vec<Value>>,
    pub dns: Option<Vec<Value>>,
    pub l7: Option<Vec<Value>>,
    pub l7proto: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(in crate::dialect) struct Authentication {
    pub mode: Option<String>,
}

impl From<PolicySpec> for Shape {
    fn from(spec: PolicySpec) -> Self {
        let ingress = |list: Option<Vec<IngressRule>>| {
            list.map(|list| list.into_iter().map(IngressRule::fields).collect())
        };
        let egress = |list: Option<Vec<EgressRule>>| {
            list.map(|list| list.into_iter().map(EgressRule::fields).collect())
        };
        Self {
            endpoint_selector: spec.endpoint_selector,
            node_selector: spec.node_selector,
            ingress: ingress(spec.ingress),
            ingress_deny: ingress(spec.ingress_deny),
            egress: egress(spec.egress),
            egress_deny: egress(spec.egress_deny),
            default_deny: spec.enable_default_deny.unwrap_or_default(),
        }
    }
}

impl IngressRule {
    fn fields(self) -> SideFields {
        SideFields {
            endpoints: ("fromEndpoints", self.from_endpoints),
            requires: ("fromRequires", self.from_requires),
            identities: ("", None),
            cidr: ("fromCIDR", self.from_cidr),
            cidr_set: ("fromCIDRSet", self.from_cidr_set),
            entities: ("fromEntities", self.from_entities),
            services: ("", None),
            unsupported: vec![("fromGroups", self.from_groups), ("fromNodes", self.from_nodes)],
            ports: self.to_ports,
            icmps: self.icmps,
            authentication: self.authentication,
        }
    }
}

impl EgressRule {
    fn fields(self) -> SideFields {
        SideFields {
            endpoints: ("toEndpoints", self.to_endpoints),
            requires: ("toRequires", self.to_requires),
            identities: ("", None),
            cidr: ("toCIDR", self.to_cidr),
            cidr_set: ("toCIDRSet", self.to_cidr_set),
            entities: ("toEntities", self.to_entities),
            services: ("toServices", self.to_services),
            unsupported: vec![
                ("toGroups", self.to_groups),
                ("toNodes", self.to_nodes),
                ("toFQDNs", self.to_fqdns),
            ],
            ports: self.to_ports,
            icmps: self.icmps,
            authentication: self.authentication,
        }
    }
}
