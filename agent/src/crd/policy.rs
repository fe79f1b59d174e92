use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::status::ObjectStatus;

/// Policy at L3/L4 for pods of a namespace, shaped as a CiliumNetworkPolicy.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    shortname = "mpol",
    category = "weft",
    namespaced,
    doc = "What may reach pods of a namespace, and what they may reach.",
    derive = "PartialEq",
    status = "ObjectStatus"
)]
pub struct MeshPolicySpec {
    /// What it says.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

/// The same for pods of all namespaces.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "ClusterMeshPolicy",
    plural = "clustermeshpolicies",
    shortname = "cmpol",
    category = "weft",
    doc = "What may reach pods, and what they may reach, in every namespace.",
    derive = "PartialEq",
    status = "ObjectStatus"
)]
pub struct ClusterMeshPolicySpec {
    /// What it says.
    #[serde(flatten)]
    pub rules: PolicyRules,
}

// The API server estimates what its rules cost from the greatest lengths of lists, and refuses a
// definition that has none.

/// What a policy says.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRules {
    /// For whoever reads the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The pods that the policy acts on; `{}` selects all.
    #[schemars(schema_with = "schema::label_selector")]
    pub endpoint_selector: LabelSelector,
    /// What may reach them. Where there is a rule, nothing else may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub ingress: Option<Vec<IngressRule>>,
    /// What may not, whatever allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub ingress_deny: Option<Vec<IngressRule>>,
    /// What they may reach. Where there is a rule, they may reach nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub egress: Option<Vec<EgressRule>>,
    /// What they may not, whatever allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200))]
    pub egress_deny: Option<Vec<EgressRule>>,
    /// Whether what no rule allows is denied; by default, in the directions that have rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable_default_deny: Option<DefaultDeny>,
}

/// A rule about what reaches the pods. It names peers in one way at most.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "[has(self.fromEndpoints), has(self.fromIdentities), has(self.fromCIDR), \
     has(self.fromCIDRSet), has(self.fromEntities)].filter(named, named).size() <= 1"
).message("a rule names peers in one way; make two rules of it"))]
pub struct IngressRule {
    /// Pods, of the policy's namespace unless `k8s:io.kubernetes.pod.namespace` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selectors")]
    pub from_endpoints: Option<Vec<LabelSelector>>,
    /// Pods with a proven SPIFFE identity, as spiffe://cluster.local/ns/shop/sa/web, or with a *
    /// at one end. Over TCP alone is an identity proven. In a denying rule it need not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_identities: Option<Vec<Identity>>,
    /// Addresses outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "fromCIDR")]
    pub from_cidr: Option<Vec<String>>,
    /// The same, with exceptions.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "fromCIDRSet")]
    pub from_cidr_set: Option<Vec<CidrRule>>,
    /// Peers that are no pods, or all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_entities: Option<Vec<Entity>>,
    /// Ports of the pods; without any, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub to_ports: Option<Vec<PortRule>>,
}

/// A rule about what the pods reach. It names peers in one way at most.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "[has(self.toEndpoints), has(self.toIdentities), has(self.toCIDR), has(self.toCIDRSet), \
     has(self.toEntities), has(self.toServices)].filter(named, named).size() <= 1"
).message("a rule names peers in one way; make two rules of it"))]
pub struct EgressRule {
    /// Pods, of the policy's namespace unless `k8s:io.kubernetes.pod.namespace` names another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selectors")]
    pub to_endpoints: Option<Vec<LabelSelector>>,
    /// Pods of the mesh with a SPIFFE identity, as spiffe://cluster.local/ns/shop/sa/web, or with
    /// a * at one end. Over TCP alone is an identity proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_identities: Option<Vec<Identity>>,
    /// Addresses outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "toCIDR")]
    pub to_cidr: Option<Vec<String>>,
    /// The same, with exceptions.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "toCIDRSet")]
    pub to_cidr_set: Option<Vec<CidrRule>>,
    /// Peers that are no pods, or all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_entities: Option<Vec<Entity>>,
    /// What serves these services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub to_services: Option<Vec<ServiceRule>>,
    /// Ports of the peers; without any, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub to_ports: Option<Vec<PortRule>>,
}

/// A SPIFFE identity, or a part of one with a * at one end.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Identity(
    #[schemars(length(max = 2048), regex(pattern = r"^(\*|\*?[^*]+|[^*]+\*)$"))] pub String,
);

/// A block of addresses.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct CidrRule {
    /// As 10.0.0.0/8 or fd00::/8.
    pub cidr: String,
    /// Blocks in it that are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub except: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the model's `Entity` says it")]
pub enum Entity {
    All,
    World,
    #[serde(rename = "world-ipv4")]
    WorldIpv4,
    #[serde(rename = "world-ipv6")]
    WorldIpv6,
    Cluster,
    Host,
    RemoteNode,
    KubeApiserver,
    Unmanaged,
    Health,
    Init,
    Ingress,
    None,
}

/// Services, by name or by labels.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.k8sService) != has(self.k8sServiceSelector)")
    .message("takes one of k8sService and k8sServiceSelector"))]
pub struct ServiceRule {
    /// One service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_service: Option<ServiceName>,
    /// Services with some labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k8s_service_selector: Option<ServiceLabels>,
}

/// A service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceName {
    /// Its name.
    pub service_name: String,
    /// Its namespace; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Services by labels.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ServiceLabels {
    /// On the services' labels.
    #[schemars(schema_with = "schema::label_selector")]
    pub selector: LabelSelector,
    /// Their namespace; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// Ports, and what may be said on them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PortRule {
    /// Any of these.
    #[schemars(length(min = 1, max = 40))]
    pub ports: Vec<PortProtocol>,
    /// What an allowing rule allows, where it does not allow everything. It is kept, and not
    /// enforced before the proxy reads HTTP: until then what has such rules is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<L7Rules>,
}

/// A port, or a range of ports.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.endPort) || type(self.port) != int || int(self.port) <= self.endPort"
).message("endPort is below port; swap them"))]
pub struct PortProtocol {
    /// A number (0 stands for all), or the name that the pod gives it.
    #[schemars(schema_with = "schema::int_or_string")]
    pub port: IntOrString,
    /// The last port of a range that begins at `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65535))]
    pub end_port: Option<i32>,
    /// TCP, UDP and SCTP if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "they are the protocols' names")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Any,
}

/// Rules about what is said.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct L7Rules {
    /// Requests that match any of these are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    pub http: Option<Vec<HttpRule>>,
}

/// A request matches where every field that is there does, each by any of its items.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HttpRule {
    /// GET and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Paths, exact or with a * at one end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<Vec<String>>,
    /// Hosts, exact or with a * at one end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// Headers; all of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderMatch>>,
    /// Tokens; any of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Vec<JwtMatch>>,
}

/// A header of a request.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HeaderMatch {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Its value, exact or with a * at one end; without, the header must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A JSON web token.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct JwtMatch {
    /// Its issuer.
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audiences: Option<Vec<String>>,
    /// Claims; of each, one of its values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<BTreeMap<String, Vec<String>>>,
}

/// In which directions what no rule allows is denied.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DefaultDeny {
    /// To the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<bool>,
    /// From the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<bool>,
}
