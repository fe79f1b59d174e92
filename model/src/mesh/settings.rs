use std::sync::Arc;
use std::time::Duration;

use super::{MtlsMode, Origin};

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// SPIFFE trust domain, also the one that Istio principals are written with.
    pub trust_domain: Arc<str>,
    /// Where mesh-wide AuthorizationPolicies and PeerAuthentications live.
    pub root_namespace: Arc<str>,
    /// mTLS mode where no PeerAuthentication says one.
    pub default_mtls: MtlsMode,
    /// Whether pods are in the mesh where neither they nor their namespace carry a label.
    pub enroll_by_default: bool,
    /// Whether same-node traffic takes the tunnel, too (`sameNode: mtls`).
    pub same_node_mtls: bool,
    /// How long workloads' certificates live.
    pub certificate_life: Duration,
    /// Whether policies of `cilium.io` are in force.
    pub cilium: bool,
    /// Whether policies of `security.istio.io` are in force.
    pub istio: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            default_mtls: MtlsMode::Permissive,
            enroll_by_default: false,
            same_node_mtls: false,
            certificate_life: Duration::from_secs(3600),
            cilium: true,
            istio: true,
        }
    }
}

/// weft.dev/v1alpha1 MeshSettings. What it says goes before what the agent was started with;
/// where it is silent, that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// The object as a whole.
    pub origin: Origin,
    /// `mtls.mode`.
    pub default_mtls: Option<MtlsMode>,
    /// `sameNode`.
    pub same_node_mtls: Option<bool>,
    /// `dialects.cilium`, true if absent.
    pub cilium: bool,
    /// `dialects.istio`, true if absent.
    pub istio: bool,
    /// `trustDomain`.
    pub trust_domain: Option<Arc<str>>,
    /// `certificateLife`.
    pub certificate_life: Option<Duration>,
}

impl MeshSettings {
    /// Says nothing.
    pub fn silent(origin: Origin) -> Self {
        Self {
            origin,
            default_mtls: None,
            same_node_mtls: None,
            cilium: true,
            istio: true,
            trust_domain: None,
            certificate_life: None,
        }
    }
}

impl Settings {
    /// These, with what an object says in their place.
    pub fn with(&self, said: &MeshSettings) -> Self {
        Self {
            trust_domain: said.trust_domain.as_ref().unwrap_or(&self.trust_domain).clone(),
            root_namespace: self.root_namespace.clone(),
            default_mtls: said.default_mtls.unwrap_or(self.default_mtls),
            enroll_by_default: self.enroll_by_default,
            same_node_mtls: said.same_node_mtls.unwrap_or(self.same_node_mtls),
            certificate_life: said.certificate_life.unwrap_or(self.certificate_life),
            cilium: said.cilium,
            istio: said.istio,
        }
    }
}
