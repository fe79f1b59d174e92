use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::ObjectStatus;

/// Settings of the whole mesh. What is left out holds as the agent was started.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshSettings",
    plural = "meshsettings",
    singular = "meshsettings",
    shortname = "msettings",
    category = "weft",
    doc = "Settings of the whole mesh. There is one object, named default.",
    derive = "PartialEq",
    status = "ObjectStatus",
    validation = Rule::new("self.metadata.name == 'default'")
        .message("there is one mesh; its settings are called \"default\""),
    printcolumn(name = "mTLS", type_ = "string", json_path = ".spec.mtls.mode"),
    printcolumn(name = "Same-Node", type_ = "string", json_path = ".spec.sameNode")
)]
#[serde(rename_all = "camelCase")]
pub struct MeshSettingsSpec {
    /// How pods of the mesh take peers where no PeerAuthentication says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    /// Whether traffic between two pods of a node goes from socket to socket, attested by the
    /// kernel (direct, the default), or through the proxies, encrypted (mtls).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNode>,
    /// Which other meshes' policies are in force; all are by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dialects: Option<Dialects>,
    /// SPIFFE trust domain, without spiffe://.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = r"^[a-z0-9._-]+$"))]
    pub trust_domain: Option<String>,
    /// How long workloads' certificates live, as 1h, 90m or 1h30m; from 10s to 8760h. They are
    /// renewed at half of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 20), regex(pattern = r"^([0-9]{1,9}[hms])+$"))]
    #[x_kube(validation = Rule::new(
        "duration(self) >= duration('10s') && duration(self) <= duration('8760h')"
    ).message("a certificate's life is from 10s to 8760h"))]
    pub certificate_life: Option<String>,
}

/// Mutual TLS.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Mtls {
    /// STRICT: only peers with a proven identity. PERMISSIVE: others, too. DISABLE: no tunnel is
    /// used towards pods.
    pub mode: MtlsMode,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the field says it")]
pub enum MtlsMode {
    Strict,
    Permissive,
    Disable,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the field says it")]
pub enum SameNode {
    Direct,
    Mtls,
}

/// Other meshes.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Dialects {
    /// CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cilium: Option<bool>,
    /// AuthorizationPolicy and PeerAuthentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub istio: Option<bool>,
}
