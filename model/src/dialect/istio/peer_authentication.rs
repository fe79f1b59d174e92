use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::schema::{Mtls, Object, PeerAuthenticationSpec};
use super::{fallback_scope, scope};
use crate::dialect::path::Path;
use crate::dialect::reading::{Reading, Unknown};
use crate::dialect::selector::port;
use crate::mesh::{MtlsMode, Origin, PeerAuthentication, Resource, Scope};

pub(in crate::dialect) fn peer_authentication(reading: &mut Reading<'_>) -> Option<Resource> {
    let object: Object<PeerAuthenticationSpec> = reading.decode(Unknown::Fails)?;
    let spec = object.spec.unwrap_or_default();
    let at = Path::ROOT.field("spec");
    let mut scope = scope(reading, &at, spec.selector.as_ref(), &[]);
    let ports = port_modes(reading, &at, spec.port_level_mtls, &scope);
    if matches!(scope, Scope::Selected(_)) {
        // `ComposePeerAuthentication` leaves these out.
        reading.warning(
            &at.field("selector"),
            "in the root namespace, Istio ignores a PeerAuthentication with a selector; move it \
             to the namespace of its pods",
        );
        scope = Scope::Nothing;
    }
    Some(Resource::from(PeerAuthentication {
        origin: reading.origin(&at),
        created: created(reading),
        scope,
        mode: mode(reading, &at.field("mtls"), spec.mtls.as_ref()),
        ports,
    }))
}

/// What stands for a policy that is not in force: the narrowest that it could say.
pub(in crate::dialect) fn peer_authentication_fallback(reading: &mut Reading<'_>) -> Vec<Resource> {
    vec![Resource::from(PeerAuthentication {
        origin: reading.origin(&Path::ROOT.field("spec")),
        created: created(reading),
        scope: fallback_scope(reading),
        mode: Some(MtlsMode::Strict),
        ports: BTreeMap::new(),
    })]
}

/// When the API server made the object, in seconds since the epoch.
fn created(reading: &Reading<'_>) -> Option<i64> {
    let at = Path::ROOT.fields(&["metadata", "creationTimestamp"]);
    Time::deserialize(reading.get(&at)?).ok().map(|created| created.0.as_second())
}

fn port_modes(
    reading: &mut Reading<'_>,
    at: &Path,
    modes: Option<BTreeMap<String, Mtls>>,
    scope: &Scope,
) -> BTreeMap<u16, (Option<MtlsMode>, Origin)> {
    let at = at.field("portLevelMtls");
    let Some(modes) = modes else { return BTreeMap::new() };
    if modes.is_empty() {
        reading.error(&at, "is empty; remove it");
    } else if matches!(scope, Scope::Mesh | Scope::Namespace(_)) {
        reading.error(&at, "is only allowed beside a selector with labels; add `selector`");
    }
    let mut ports = BTreeMap::new();
    for (text, mtls) in &modes {
        let at = at.field(text);
        let Ok(number) = text.parse::<i64>() else {
            reading.error(&at, format_args!("\"{text}\" is no port; write its number"));
            continue;
        };
        let mode = mode(reading, &at, Some(mtls));
        if let Some(port) = port(reading, &at, number) {
            ports.insert(port, (mode, reading.origin(&at)));
        }
    }
    ports
}

fn mode(reading: &mut Reading<'_>, at: &Path, mtls: Option<&Mtls>) -> Option<MtlsMode> {
    match mtls?.mode.as_deref() {
        None | Some("UNSET") => None,
        Some("STRICT") => Some(MtlsMode::Strict),
        Some("PERMISSIVE") => Some(MtlsMode::Permissive),
        Some("DISABLE") => Some(MtlsMode::Disable),
        Some(other) => {
            reading.error(
                &at.field("mode"),
                format_args!("\"{other}\" is none of STRICT, PERMISSIVE, DISABLE, UNSET"),
            );
            None
        }
    }
}
