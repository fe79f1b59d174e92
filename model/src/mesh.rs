//! The mesh: everything that the dialects say, in one shape.

mod apply;
mod authorization;
mod labels;
mod lookup;
mod origin;
mod policy;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use authorization::*;
pub use labels::*;
pub use lookup::*;
pub use origin::*;
pub use policy::*;
pub use workload::*;

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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            default_mtls: MtlsMode::Permissive,
            enroll_by_default: false,
        }
    }
}

/// One thing that a document says. A document may say several (a NetworkPolicy is one
/// [`Policy`]; a CiliumNetworkPolicy with `specs` is several).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// v1 Namespace.
    Namespace(Namespace),
    /// v1 Node.
    Node(Node),
    /// v1 Pod.
    Pod(Pod),
    /// v1 ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// v1 Service.
    Service(Service),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A policy at L3/L4, of any dialect.
    Policy(Policy),
    /// security.istio.io AuthorizationPolicy.
    Authorization(AuthorizationPolicy),
    /// security.istio.io PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
}

/// Everything known of the mesh. Keys are what the API server keeps objects under, so that two
/// objects with one name are one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mesh {
    /// Settings.
    pub settings: Settings,
    /// By name.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// By name.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<Name, Arc<Pod>>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<Name, ServiceAccount>,
    /// By namespace and name.
    pub services: BTreeMap<Name, Service>,
    /// By namespace and name of the slice.
    pub endpoint_slices: BTreeMap<Name, EndpointSlice>,
    /// By object, in the order in which the object says them.
    pub policies: BTreeMap<ObjectRef, Vec<Arc<Policy>>>,
    /// By object.
    pub authorization: BTreeMap<ObjectRef, Arc<AuthorizationPolicy>>,
    /// By object.
    pub peer_authentication: BTreeMap<ObjectRef, Arc<PeerAuthentication>>,
}
