//! The kinds whose objects users write.

use std::sync::LazyLock;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionVersion;
use kube::core::ApiResource;

use crate::crd;

/// A kind.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    /// In each version that is read, the preferred one first: servers need not have all.
    pub resources: Vec<ApiResource>,
    /// Whether its status is Weft's to write.
    pub is_own: bool,
    /// Whether a namespace has its objects.
    pub is_namespaced: bool,
}

impl Kind {
    /// As in `kind:` of a manifest.
    pub(super) fn name(&self) -> &str {
        self.resources.first().map_or("", |resource| &resource.kind)
    }
}

/// All of them.
pub(super) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(all);
    &KINDS
}

fn all() -> Vec<Kind> {
    let network_policy = Kind {
        resources: vec![ApiResource::erase::<NetworkPolicy>(&())],
        is_own: false,
        is_namespaced: true,
    };
    let defined = crd::own().into_iter().chain(crd::compat()).map(|definition| {
        let spec = definition.spec;
        let mut versions = spec.versions;
        versions.sort_by_key(|version| !version.storage);
        let resource = |version: CustomResourceDefinitionVersion| ApiResource {
            api_version: format!("{}/{}", spec.group, version.name),
            group: spec.group.clone(),
            version: version.name,
            kind: spec.names.kind.clone(),
            plural: spec.names.plural.clone(),
        };
        Kind {
            is_own: spec.group == crd::GROUP,
            is_namespaced: spec.scope == "Namespaced",
            resources: versions.into_iter().map(resource).collect(),
        }
    });
    std::iter::once(network_policy).chain(defined).collect()
}

/// A kind, and the version of it, by what its objects say they are.
pub(super) fn resource(
    api_version: &str,
    kind: &str,
) -> Option<(&'static Kind, &'static ApiResource)> {
    let of_kind =
        |resource: &&ApiResource| resource.kind == kind && resource.api_version == api_version;
    kinds().iter().find_map(|known| Some((known, known.resources.iter().find(of_kind)?)))
}
