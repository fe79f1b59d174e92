//! The fields of `weft.dev/v1alpha1`. The schemas that the API server checks are made from types
//! in the agent; tests here and there hold the two against each other.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;

use crate::dialect::cilium::schema as cilium;
use crate::dialect::cilium::shape::{DefaultDeny, Shape, SideFields};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "fields are named so that they are known")]
pub(super) struct Object<S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    pub spec: Option<S>,
    status: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "fields are named so that they are known")]
pub(super) struct MeshPolicySpec {
    description: Option<String>,
    endpoint_selector: Option<LabelSelector>,
    ingress: Option<Vec<IngressRule>>,
    ingress_deny: Option<Vec<IngressRule>>,
    egress: Option<Vec<EgressRule>>,
    egress_deny: Option<Vec<EgressRule>>,
    enable_default_deny: Option<DefaultDeny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressRule {
    from_endpoints: Option<Vec<LabelSelector>>,
    from_identities: Option<Vec<String>>,
    #[serde(rename = "fromCIDR")]
    from_cidr: Option<Vec<String>>,
    #[serde(rename = "fromCIDRSet")]
    from_cidr_set: Option<Vec<CidrRule>>,
    from_entities: Option<Vec<String>>,
    to_ports: Option<Vec<PortRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EgressRule {
    to_endpoints: Option<Vec<LabelSelector>>,
    to_identities: Option<Vec<String>>,
    #[serde(rename = "toCIDR")]
    to_cidr: Option<Vec<String>>,
    #[serde(rename = "toCIDRSet")]
    to_cidr_set: Option<Vec<CidrRule>>,
    to_entities: Option<Vec<String>>,
    to_services: Option<Vec<cilium::ServiceRule>>,
    to_ports: Option<Vec<PortRule>>,
}

#[derive(Deserialize)]
struct CidrRule {
    cidr: Option<String>,
    except: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct PortRule {
    ports: Option<Vec<PortProtocol>>,
    rules: Option<L7Rules>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortProtocol {
    /// A number, or text.
    port: Option<Value>,
    end_port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Deserialize)]
struct L7Rules {
    http: Option<Vec<HttpRule>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "fields are named so that they are known")]
struct HttpRule {
    methods: Option<Vec<String>>,
    paths: Option<Vec<String>>,
    hosts: Option<Vec<String>>,
    headers: Option<Vec<HeaderMatch>>,
    jwt: Option<Vec<JwtMatch>>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "fields are named so that they are known")]
struct HeaderMatch {
    name: String,
    value: Option<String>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "fields are named so that they are known")]
struct JwtMatch {
    issuer: String,
    audiences: Option<Vec<String>>,
    claims: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MeshSettingsSpec {
    pub mtls: Option<Mtls>,
    pub same_node: Option<String>,
    pub dialects: Option<Dialects>,
    pub trust_domain: Option<String>,
    pub certificate_life: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Mtls {
    pub mode: Option<String>,
}

#[derive(Default, Deserialize)]
pub(super) struct Dialects {
    pub cilium: Option<bool>,
    pub istio: Option<bool>,
}

impl From<MeshPolicySpec> for Shape {
    fn from(spec: MeshPolicySpec) -> Self {
        let ingress = |list: Option<Vec<IngressRule>>| {
            list.map(|list| list.into_iter().map(IngressRule::fields).collect())
        };
        let egress = |list: Option<Vec<EgressRule>>| {
            list.map(|list| list.into_iter().map(EgressRule::fields).collect())
        };
        Self {
            endpoint_selector: spec.endpoint_selector,
            node_selector: None,
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
            requires: ("", None),
            identities: ("fromIdentities", self.from_identities),
            cidr: ("fromCIDR", self.from_cidr),
            cidr_set: ("fromCIDRSet", self.from_cidr_set.map(all_into)),
            entities: ("fromEntities", self.from_entities),
            services: ("", None),
            unsupported: Vec::new(),
            ports: self.to_ports.map(all_into),
            icmps: None,
            authentication: None,
        }
    }
}

impl EgressRule {
    fn fields(self) -> SideFields {
        SideFields {
            endpoints: ("toEndpoints", self.to_endpoints),
            requires: ("", None),
            identities: ("toIdentities", self.to_identities),
            cidr: ("toCIDR", self.to_cidr),
            cidr_set: ("toCIDRSet", self.to_cidr_set.map(all_into)),
            entities: ("toEntities", self.to_entities),
            services: ("toServices", self.to_services),
            unsupported: Vec::new(),
            ports: self.to_ports.map(all_into),
            icmps: None,
            authentication: None,
        }
    }
}

impl From<CidrRule> for cilium::CidrRule {
    fn from(CidrRule { cidr, except }: CidrRule) -> Self {
        Self { cidr, except, cidr_group_ref: None, cidr_group_selector: None }
    }
}

impl From<PortRule> for cilium::PortRule {
    fn from(rule: PortRule) -> Self {
        let http = rule.rules.and_then(|rules| rules.http);
        Self {
            ports: rule.ports.map(all_into),
            // What the rules say is of no matter before HTTP is read.
            rules: http.map(|http| cilium::L7Rules {
                http: Some(vec![Value::Null; http.len()]),
                kafka: None,
                dns: None,
                l7: None,
                l7proto: None,
            }),
            terminating_tls: None,
            originating_tls: None,
            server_names: None,
            listener: None,
        }
    }
}

impl From<PortProtocol> for cilium::PortProtocol {
    fn from(PortProtocol { port, end_port, protocol }: PortProtocol) -> Self {
        let port = port.map(|port| match port {
            Value::String(text) => text,
            other => other.to_string(),
        });
        Self { port, end_port, protocol }
    }
}

fn all_into<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}
