//! The kinds whose objects users write.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource as _;
use kube::core::ApiResource;

use crate::crd;

/// A kind.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub resource: ApiResource,
    /// Whether its status is Weft's to write.
    pub is_own: bool,
    /// Whether a namespace has its objects.
    pub is_namespaced: bool,
}

/// All of them.
pub(super) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(all);
    &KINDS
}

fn all() -> Vec<Kind> {
    let network_policy = Kind {
        resource: ApiResource {
            group: NetworkPolicy::group(&()).into_owned(),
            version: NetworkPolicy::version(&()).into_owned(),
            api_version: NetworkPolicy::api_version(&()).into_owned(),
            kind: NetworkPolicy::kind(&()).into_owned(),
            plural: NetworkPolicy::plural(&()).into_owned(),
        },
        is_own: false,
        is_namespaced: true,
    };
    let defined = crd::own().into_iter().chain(crd::compat()).filter_map(|definition| {
        let spec = definition.spec;
        let version = spec.versions.into_iter().find(|version| version.storage)?.name;
        Some(Kind {
            is_own: spec.group == crd::GROUP,
            is_namespaced: spec.scope == "Namespaced",
            resource: ApiResource {
                api_version: format!("{}/{version}", spec.group),
                group: spec.group,
                version,
                kind: spec.names.kind,
                plural: spec.names.plural,
            },
        })
    });
    std::iter::once(network_policy).chain(defined).collect()
}

/// A kind by what its objects say they are.
pub(super) fn resource(api_version: &Arc<str>, kind: &str) -> Option<&'static Kind> {
    kinds()
        .iter()
        .find(|known| known.resource.kind == kind && known.resource.api_version == **api_version)
}
