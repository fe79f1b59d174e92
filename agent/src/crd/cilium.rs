//! What Weft reads of `cilium.io/v2`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::compat::ForeignStatus;
use super::policy::{DefaultDeny, ServiceRule};
use super::schema;

#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, Serialize)]
#[kube(
    group = "cilium.io",
    version = "v2",
    kind = "CiliumNetworkPolicy",
    plural = "ciliumnetworkpolicies",
    shortname = "cnp",
    shortname = "ciliumnp",
    category = "cilium",
    category = "ciliumpolicy",
    namespaced,
    status = "ForeignStatus",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub(super) struct CiliumNetworkPolicySpec {
    #[serde(flatten)]
    rule: Rule,
}

#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, Serialize)]
#[kube(
    group = "cilium.io",
    version = "v2",
    kind = "CiliumClusterwideNetworkPolicy",
    plural = "ciliumclusterwidenetworkpolicies",
    shortname = "ccnp",
    category = "cilium",
    category = "ciliumpolicy",
    status = "ForeignStatus",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub(super) struct CiliumClusterwideNetworkPolicySpec {
    #[serde(flatten)]
    rule: Rule,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selector")]
    endpoint_selector: Option<LabelSelector>,
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selector")]
    node_selector: Option<LabelSelector>,
    ingress: Option<Vec<IngressRule>>,
    ingress_deny: Option<Vec<IngressRule>>,
    egress: Option<Vec<EgressRule>>,
    egress_deny: Option<Vec<EgressRule>>,
    enable_default_deny: Option<DefaultDeny>,
    description: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct IngressRule {
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selectors")]
    from_endpoints: Option<Vec<LabelSelector>>,
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selectors")]
    from_requires: Option<Vec<LabelSelector>>,
    #[serde(rename = "fromCIDR")]
    from_cidr: Option<Vec<String>>,
    #[serde(rename = "fromCIDRSet")]
    from_cidr_set: Option<Vec<CidrRule>>,
    from_entities: Option<Vec<String>>,
    to_ports: Option<Vec<PortRule>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct EgressRule {
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selectors")]
    to_endpoints: Option<Vec<LabelSelector>>,
    #[serde(default)]
    #[schemars(schema_with = "schema::label_selectors")]
    to_requires: Option<Vec<LabelSelector>>,
    #[serde(rename = "toCIDR")]
    to_cidr: Option<Vec<String>>,
    #[serde(rename = "toCIDRSet")]
    to_cidr_set: Option<Vec<CidrRule>>,
    to_entities: Option<Vec<String>>,
    to_services: Option<Vec<ServiceRule>>,
    to_ports: Option<Vec<PortRule>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
struct CidrRule {
    cidr: Option<String>,
    except: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
struct PortRule {
    ports: Option<Vec<PortProtocol>>,
    rules: Option<L7Rules>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortProtocol {
    port: Option<String>,
    end_port: Option<i32>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
struct L7Rules {
    #[serde(default)]
    #[schemars(schema_with = "schema::list_of_anything")]
    http: Option<Vec<Value>>,
}
