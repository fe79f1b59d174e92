//! The fields of `cilium.io/v2` policies.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use crate::mesh::{Direction, Effect};

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

#[derive(Clone, Default, Deserialize)]
pub(super) struct DefaultDeny {
    pub ingress: Option<bool>,
    pub egress: Option<bool>,
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
pub(super) struct CidrRule {
    pub cidr: Option<String>,
    pub except: Option<Vec<String>>,
    pub cidr_group_ref: Option<String>,
    pub cidr_group_selector: Option<Value>,
}

#[derive(Clone, Deserialize)]
pub(super) struct ServiceRule {
    #[serde(rename = "k8sService")]
    pub by_name: Option<ServiceName>,
    #[serde(rename = "k8sServiceSelector")]
    pub by_labels: Option<ServiceLabels>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceName {
    pub service_name: Option<String>,
    pub namespace: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(super) struct ServiceLabels {
    pub selector: Option<LabelSelector>,
    pub namespace: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortRule {
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
pub(super) struct PortProtocol {
    pub port: Option<String>,
    pub end_port: Option<i64>,
    pub protocol: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(super) struct L7Rules {
    pub http: Option<Vec<Value>>,
    pub kafka: Option<Vec<Value>>,
    pub dns: Option<Vec<Value>>,
    pub l7: Option<Vec<Value>>,
    pub l7proto: Option<String>,
}

#[derive(Clone, Deserialize)]
pub(super) struct Authentication {
    pub mode: Option<String>,
}

/// What rules of both directions have, with the names of the fields that hold it.
pub(super) struct SideFields {
    pub endpoints: (&'static str, Option<Vec<LabelSelector>>),
    pub requires: (&'static str, Option<Vec<LabelSelector>>),
    pub cidr: (&'static str, Option<Vec<String>>),
    pub cidr_set: (&'static str, Option<Vec<CidrRule>>),
    pub entities: (&'static str, Option<Vec<String>>),
    pub services: (&'static str, Option<Vec<ServiceRule>>),
    /// Ways to name peers that Weft does not support.
    pub unsupported: Vec<(&'static str, Option<Value>)>,
    pub ports: Option<Vec<PortRule>>,
    pub icmps: Option<Value>,
    pub authentication: Option<Authentication>,
}

impl PolicySpec {
    /// The rules of a section, if it is there.
    pub fn sides(&self, direction: Direction, effect: Effect) -> Option<Vec<SideFields>> {
        let ingress = |list: &Option<Vec<IngressRule>>| {
            list.as_ref().map(|list| list.iter().map(IngressRule::fields).collect())
        };
        let egress = |list: &Option<Vec<EgressRule>>| {
            list.as_ref().map(|list| list.iter().map(EgressRule::fields).collect())
        };
        match (direction, effect) {
            (Direction::Ingress, Effect::Allow) => ingress(&self.ingress),
            (Direction::Ingress, Effect::Deny) => ingress(&self.ingress_deny),
            (Direction::Egress, Effect::Allow) => egress(&self.egress),
            (Direction::Egress, Effect::Deny) => egress(&self.egress_deny),
        }
    }
}

impl IngressRule {
    fn fields(&self) -> SideFields {
        SideFields {
            endpoints: ("fromEndpoints", self.from_endpoints.clone()),
            requires: ("fromRequires", self.from_requires.clone()),
            cidr: ("fromCIDR", self.from_cidr.clone()),
            cidr_set: ("fromCIDRSet", self.from_cidr_set.clone()),
            entities: ("fromEntities", self.from_entities.clone()),
            services: ("", None),
            unsupported: vec![
                ("fromGroups", self.from_groups.clone()),
                ("fromNodes", self.from_nodes.clone()),
            ],
            ports: self.to_ports.clone(),
            icmps: self.icmps.clone(),
            authentication: self.authentication.clone(),
        }
    }
}

impl EgressRule {
    fn fields(&self) -> SideFields {
        SideFields {
            endpoints: ("toEndpoints", self.to_endpoints.clone()),
            requires: ("toRequires", self.to_requires.clone()),
            cidr: ("toCIDR", self.to_cidr.clone()),
            cidr_set: ("toCIDRSet", self.to_cidr_set.clone()),
            entities: ("toEntities", self.to_entities.clone()),
            services: ("toServices", self.to_services.clone()),
            unsupported: vec![
                ("toGroups", self.to_groups.clone()),
                ("toNodes", self.to_nodes.clone()),
                ("toFQDNs", self.to_fqdns.clone()),
            ],
            ports: self.to_ports.clone(),
            icmps: self.icmps.clone(),
            authentication: self.authentication.clone(),
        }
    }
}
