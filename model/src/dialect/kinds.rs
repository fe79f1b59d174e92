//! Which kinds there are, and what becomes of them.

/// A kind that is read, by group: two groups may use one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Namespace,
    Node,
    Pod,
    ServiceAccount,
    Service,
    EndpointSlice,
    NetworkPolicy,
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    AuthorizationPolicy,
    PeerAuthentication,
    MeshPolicy,
    ClusterMeshPolicy,
    MeshSettings,
}

impl Kind {
    /// The kind of a group, whatever the version.
    pub fn of(group: &str, kind: &str) -> Option<Self> {
        Some(match (group, kind) {
            ("", "Namespace") => Self::Namespace,
            ("", "Node") => Self::Node,
            ("", "Pod") => Self::Pod,
            ("", "ServiceAccount") => Self::ServiceAccount,
            ("", "Service") => Self::Service,
            ("discovery.k8s.io", "EndpointSlice") => Self::EndpointSlice,
            ("networking.k8s.io", "NetworkPolicy") => Self::NetworkPolicy,
            ("cilium.io", "CiliumNetworkPolicy") => Self::CiliumNetworkPolicy,
            ("cilium.io", "CiliumClusterwideNetworkPolicy") => Self::CiliumClusterwideNetworkPolicy,
            ("security.istio.io", "AuthorizationPolicy") => Self::AuthorizationPolicy,
            ("security.istio.io", "PeerAuthentication") => Self::PeerAuthentication,
            ("weft.dev", "MeshPolicy") => Self::MeshPolicy,
            ("weft.dev", "ClusterMeshPolicy") => Self::ClusterMeshPolicy,
            ("weft.dev", "MeshSettings") => Self::MeshSettings,
            _ => return None,
        })
    }

    /// The versions of its group that are read.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy => &["v2"],
            Self::AuthorizationPolicy | Self::PeerAuthentication => &["v1", "v1beta1"],
            Self::MeshPolicy | Self::ClusterMeshPolicy | Self::MeshSettings => &["v1alpha1"],
            _ => &["v1"],
        }
    }

    /// Whether its objects are the cluster's, not a namespace's.
    pub fn is_of_cluster(self) -> bool {
        matches!(
            self,
            Self::Namespace
                | Self::Node
                | Self::CiliumClusterwideNetworkPolicy
                | Self::ClusterMeshPolicy
                | Self::MeshSettings
        )
    }
}

/// The dialect that a kind which is read belongs to, if it can be switched off.
pub(super) fn dialect_of(kind: &str) -> Option<&'static str> {
    match kind {
        "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" => Some("cilium"),
        "AuthorizationPolicy" | "PeerAuthentication" => Some("istio"),
        _ => None,
    }
}

/// Whether objects of a kind that is not read are the cluster's, as far as is known.
pub(super) fn is_of_cluster(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        ("", "PersistentVolume")
            | ("appmesh.k8s.aws", "Mesh")
            | ("apiextensions.k8s.io" | "admissionregistration.k8s.io" | "storage.k8s.io", _)
            | ("rbac.authorization.k8s.io", "ClusterRole" | "ClusterRoleBinding")
            | ("gateway.networking.k8s.io", "GatewayClass")
            | ("policy.networking.k8s.io", _)
            | ("crd.projectcalico.org" | "projectcalico.org", "GlobalNetworkPolicy")
            | ("crd.projectcalico.org" | "projectcalico.org", "Tier" | "GlobalNetworkSet")
            | ("cilium.io", "CiliumCIDRGroup" | "CiliumClusterwideEnvoyConfig")
    )
}

/// What becomes of a kind that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It would narrow access, and does not.
    NotEnforced,
    /// It belongs to a dialect that a later version reads.
    Later,
    /// It says nothing to a mesh, or nobody here knows it.
    Foreign,
}

/// What becomes of a kind that is not read.
pub(super) fn unread(group: &str, kind: &str) -> Unread {
    match (group, kind) {
        ("security.istio.io", _)
        | ("policy.linkerd.io", _)
        | ("policy.networking.k8s.io", _)
        | ("consul.hashicorp.com", "ServiceIntentions" | "JWTProvider")
        | ("cilium.io", "CiliumCIDRGroup" | "CiliumLocalRedirectPolicy")
        | ("cilium.io", "CiliumEnvoyConfig" | "CiliumClusterwideEnvoyConfig")
        | ("specs.smi-spec.io" | "access.smi-spec.io", _)
        | ("extensions", "NetworkPolicy") => Unread::NotEnforced,
        ("crd.projectcalico.org" | "projectcalico.org", kind) if kind.contains("Policy") => {
            Unread::NotEnforced
        }
        (
            "networking.istio.io"
            | "telemetry.istio.io"
            | "extensions.istio.io"
            | "linkerd.io"
            | "split.smi-spec.io"
            | "consul.hashicorp.com"
            | "appmesh.k8s.aws"
            | "gateway.networking.k8s.io"
            | "cilium.io",
            _,
        ) => Unread::Later,
        _ => Unread::Foreign,
    }
}
