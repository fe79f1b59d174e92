//! The mesh: everything that the dialects say, in one shape.

mod apply;
mod authorization;
mod labels;
mod lookup;
mod origin;
mod policy;
mod settings;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use authorization::*;
pub use labels::*;
pub use lookup::*;
pub use origin::*;
pub use policy::*;
pub use settings::*;
pub use workload::*;

/// One thing that a document says. A document may say several (a NetworkPolicy is one
/// [`Policy`]; a CiliumNetworkPolicy with `specs` is several).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// v1 Namespace.
    Namespace(Namespace),
    /// v1 Node.
    Node(Node),
    /// v1 Pod.
    Pod(Arc<Pod>),
    /// v1 ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// v1 Service.
    Service(Arc<Service>),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// A policy at L3/L4, of any dialect.
    Policy(Arc<Policy>),
    /// security.istio.io AuthorizationPolicy.
    Authorization(Arc<AuthorizationPolicy>),
    /// security.istio.io PeerAuthentication.
    PeerAuthentication(Arc<PeerAuthentication>),
    /// weft.dev MeshSettings.
    Settings(Arc<MeshSettings>),
}

macro_rules! from {
    ($($variant:ident: $resource:ty),*) => {$(
        impl From<$resource> for Resource {
            fn from(resource: $resource) -> Self {
                Self::$variant(Arc::new(resource))
            }
        }
    )*};
}
from!(
    Pod: Pod, Service: Service, EndpointSlice: EndpointSlice, Policy: Policy,
    Authorization: AuthorizationPolicy, PeerAuthentication: PeerAuthentication,
    Settings: MeshSettings
);

/// Everything known of the mesh. Keys are what the API server keeps objects under, so that two
/// objects with one name are one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mesh {
    /// Settings that are in force.
    pub settings: Settings,
    /// Which versions of the objects of weft.dev this is made of.
    pub versions: BTreeMap<ObjectRef, ObjectVersion>,
    /// By object; there is one at most. What it says is in force in a mesh that is settled
    /// ([`Mesh::settle`]).
    pub settings_objects: BTreeMap<ObjectRef, Arc<MeshSettings>>,
    /// By name.
    pub namespaces: BTreeMap<Arc<str>, Namespace>,
    /// By name.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// By namespace and name.
    pub pods: BTreeMap<Name, Arc<Pod>>,
    /// By namespace and name.
    pub service_accounts: BTreeMap<Name, ServiceAccount>,
    /// By namespace and name.
    pub services: BTreeMap<Name, Arc<Service>>,
    /// By namespace and name of the slice.
    pub endpoint_slices: BTreeMap<Name, Arc<EndpointSlice>>,
    /// By object, in the order in which the object says them.
    pub policies: BTreeMap<ObjectRef, Vec<Arc<Policy>>>,
    /// By object.
    pub authorization: BTreeMap<ObjectRef, Arc<AuthorizationPolicy>>,
    /// By object.
    pub peer_authentication: BTreeMap<ObjectRef, Arc<PeerAuthentication>>,
    /// Objects that are not in force and never were, and say what stands in for them instead.
    pub stand_ins: BTreeSet<ObjectRef>,
}
