use std::time::Duration;

use super::schema::{Dialects, MeshSettingsSpec, Object};
use crate::dialect::path::Path;
use crate::dialect::principal::is_trust_domain;
use crate::dialect::reading::{Reading, Unknown};
use crate::mesh::{MeshSettings, MtlsMode, Resource};

/// The only name that an object of the kind may have: there is one mesh.
const NAME: &str = "default";
/// A certificate must live for longer than it takes to get the next.
const SHORTEST_LIFE: Duration = Duration::from_secs(10);
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A MeshSettings.
pub(in crate::dialect) fn settings(reading: &mut Reading<'_>) -> Option<Resource> {
    let object: Object<MeshSettingsSpec> = reading.decode(Unknown::Fails)?;
    if *reading.object.name.name != *NAME {
        reading.error(
            &Path::ROOT.fields(&["metadata", "name"]),
            "there is one mesh; its settings are called \"default\"",
        );
    }
    let spec = object.spec.unwrap_or_default();
    let at = Path::ROOT.field("spec");
    let Dialects { cilium, istio } = spec.dialects.unwrap_or_default();
    let mode = spec.mtls.and_then(|mtls| mtls.mode);
    Some(Resource::from(MeshSettings {
        origin: reading.origin(&at),
        default_mtls: mode
            .and_then(|text| mtls_mode(reading, &at.fields(&["mtls", "mode"]), &text)),
        same_node_mtls: spec
            .same_node
            .and_then(|text| is_same_node_mtls(reading, &at.field("sameNode"), &text)),
        cilium: cilium.unwrap_or(true),
        istio: istio.unwrap_or(true),
        trust_domain: spec
            .trust_domain
            .filter(|text| check_trust_domain(reading, &at.field("trustDomain"), text))
            .map(Into::into),
        certificate_life: spec
            .certificate_life
            .and_then(|text| life(reading, &at.field("certificateLife"), &text)),
    }))
}

/// What stands for settings that are not in force: STRICT, if they may have said so.
pub(in crate::dialect) fn settings_fallback(reading: &mut Reading<'_>) -> Option<Vec<Resource>> {
    let mode_at = Path::ROOT.fields(&["spec", "mtls", "mode"]);
    let said = reading.get(&mode_at).and_then(|mode| mode.as_str());
    let is_suspect = reading.is_suspect(&mode_at);
    let is_strict = match said {
        _ if is_suspect => true,
        None => reading.get(&Path::ROOT.fields(&["spec", "mtls"])).is_some(),
        Some(mode) => !matches!(mode, "PERMISSIVE" | "DISABLE"),
    };
    (is_strict && *reading.object.name.name == *NAME).then(|| {
        vec![Resource::from(MeshSettings {
            default_mtls: Some(MtlsMode::Strict),
            ..MeshSettings::silent(reading.origin(&Path::ROOT.field("spec")))
        })]
    })
}

fn mtls_mode(reading: &mut Reading<'_>, at: &Path, mode: &str) -> Option<MtlsMode> {
    match mode {
        "STRICT" => return Some(MtlsMode::Strict),
        "PERMISSIVE" => return Some(MtlsMode::Permissive),
        "DISABLE" => return Some(MtlsMode::Disable),
        other => {
            reading.error(at, format_args!("\"{other}\" is none of STRICT, PERMISSIVE, DISABLE"));
        }
    }
    None
}

fn is_same_node_mtls(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<bool> {
    match text {
        "direct" => Some(false),
        "mtls" => Some(true),
        other => {
            reading.error(at, format_args!("\"{other}\" is neither \"direct\" nor \"mtls\""));
            None
        }
    }
}

fn check_trust_domain(reading: &mut Reading<'_>, at: &Path, text: &str) -> bool {
    let is_fine = is_trust_domain(text);
    if !is_fine {
        reading.error(
            at,
            format_args!(
                "\"{text}\" is no trust domain: lower-case letters, digits, '.', '-' and '_', \
                 without spiffe://"
            ),
        );
    }
    is_fine
}

fn life(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<Duration> {
    let Some(life) = duration(text) else {
        reading.error(at, format_args!("\"{text}\" is no duration; write it as 1h, 90m or 1h30m"));
        return None;
    };
    let is_fine = (SHORTEST_LIFE..=LONGEST_LIFE).contains(&life);
    if !is_fine {
        reading.error(at, "a certificate's life is from 10s to 8760h");
    }
    is_fine.then_some(life)
}

/// Whole hours, minutes and seconds, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let (unit, after) = after.split_at_checked(1)?;
        let unit = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_secs(seconds))
}
