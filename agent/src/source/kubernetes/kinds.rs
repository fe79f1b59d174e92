//! The kinds that are followed, and what is read of their objects.

use kube::discovery::ApiResource;
use weft_model::dialect::ANNOTATIONS;

use super::object::{Fields, Kept};

/// A kind of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub group: &'static str,
    /// Those that are read, the preferred one first.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub plural: &'static str,
    /// Whether it is there only where a CustomResourceDefinition says so.
    pub custom: bool,
}

/// Fields that are kept whole.
const fn whole<const N: usize>(names: [&'static str; N]) -> [(&'static str, &'static Kept); N] {
    let mut fields: [(&str, &Kept); N] = [("", &Kept::All); N];
    let mut index = 0;
    while index < N {
        fields[index].0 = names[index];
        index += 1;
    }
    fields
}

const ANNOTATION_FIELDS: [(&str, &Kept); ANNOTATIONS.len()] = whole(ANNOTATIONS);

const METADATA: (&str, &Kept) = (
    "metadata",
    &Kept::Fields(&[
        ("name", &Kept::All),
        ("namespace", &Kept::All),
        ("uid", &Kept::All),
        ("generation", &Kept::All),
        ("creationTimestamp", &Kept::All),
        ("resourceVersion", &Kept::All),
        ("labels", &Kept::All),
        ("annotations", &Kept::Fields(&ANNOTATION_FIELDS)),
    ]),
);

const CONTAINERS: Kept =
    Kept::Fields(&[("name", &Kept::All), ("restartPolicy", &Kept::All), ("ports", &Kept::All)]);

/// What is kept of pods.
#[derive(Clone, Debug)]
pub(super) struct PodFields;

impl Fields for PodFields {
    const KEPT: &'static Kept = &Kept::Fields(&[
        METADATA,
        (
            "spec",
            &Kept::Fields(&[
                ("nodeName", &Kept::All),
                ("hostNetwork", &Kept::All),
                ("serviceAccountName", &Kept::All),
                ("serviceAccount", &Kept::All),
                ("containers", &CONTAINERS),
                ("initContainers", &CONTAINERS),
            ]),
        ),
        (
            "status",
            &Kept::Fields(&[("phase", &Kept::All), ("podIP", &Kept::All), ("podIPs", &Kept::All)]),
        ),
    ]);
}

/// What is kept of all other objects.
#[derive(Clone, Debug)]
pub(super) struct OtherFields;

impl Fields for OtherFields {
    const KEPT: &'static Kept = &Kept::Fields(&[
        METADATA,
        ("spec", &Kept::All),
        ("specs", &Kept::All),
        // Of Nodes and Services.
        ("status", &Kept::Fields(&[("addresses", &Kept::All), ("loadBalancer", &Kept::All)])),
        // Of EndpointSlices.
        ("addressType", &Kept::All),
        ("ports", &Kept::All),
        (
            "endpoints",
            &Kept::Fields(&[
                ("addresses", &Kept::All),
                ("conditions", &Kept::All),
                ("nodeName", &Kept::All),
                ("zone", &Kept::All),
                ("hints", &Kept::All),
            ]),
        ),
    ]);
}

const fn core(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind { group, versions: &["v1"], kind, plural, custom: false }
}

const fn custom(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
) -> Kind {
    Kind { group, versions, kind, plural, custom: true }
}

/// All that are read. A custom kind is followed while its definition is installed.
pub(super) const KINDS: &[Kind] = &[
    core("", "Namespace", "namespaces"),
    core("", "Node", "nodes"),
    core("", "ServiceAccount", "serviceaccounts"),
    core("", "Pod", "pods"),
    core("", "Service", "services"),
    core("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    core("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
    custom("cilium.io", &["v2"], "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    custom(
        "cilium.io",
        &["v2"],
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
    ),
    custom("security.istio.io", &["v1", "v1beta1"], "AuthorizationPolicy", "authorizationpolicies"),
    custom("security.istio.io", &["v1", "v1beta1"], "PeerAuthentication", "peerauthentications"),
    custom("weft.dev", &["v1alpha1"], "MeshPolicy", "meshpolicies"),
    custom("weft.dev", &["v1alpha1"], "ClusterMeshPolicy", "clustermeshpolicies"),
    custom("weft.dev", &["v1alpha1"], "MeshSettings", "meshsettings"),
];

impl Kind {
    /// The kind that a definition, by its name (`meshpolicies.weft.dev`), defines.
    pub(super) fn defined_by(definition: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| {
            kind.custom
                && definition
                    .strip_prefix(kind.plural)
                    .and_then(|rest| rest.strip_prefix('.'))
                    .is_some_and(|group| group == kind.group)
        })
    }

    /// The name of its definition: `meshpolicies.weft.dev`; of a core kind, its plural.
    pub(super) fn definition(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// As kube takes it, in one of its versions.
    pub(super) fn resource(&self, version: &str) -> ApiResource {
        let api_version = if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        };
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}
