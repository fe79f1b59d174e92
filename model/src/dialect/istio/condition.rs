use super::{schema, source};
use crate::dialect::NEEDS_HTTP;
use crate::dialect::path::Path;
use crate::dialect::reading::Reading;
use crate::mesh::{Condition, Needs, StringMatch};

/// An item of `rules.when`; an error says what it needs beyond L4.
pub(super) fn condition(
    reading: &mut Reading<'_>,
    at: &Path,
    condition: &schema::Condition,
) -> Result<Condition, Needs> {
    let key_at = at.field("key");
    let key = condition.key.as_deref().unwrap_or_default();
    if key.is_empty() {
        reading.error(&key_at, "missing; it says what the values are compared with");
        return Err(Needs::Unsupported);
    }
    let values = condition.values.as_deref();
    let not_values = condition.not_values.as_deref();
    if values.is_none_or(<[_]>::is_empty) && not_values.is_none_or(<[_]>::is_empty) {
        reading.error(at, "has neither values nor notValues; add one of them");
    }
    let values_at = at.field("values");
    let not_values_at = at.field("notValues");
    Ok(match key {
        "source.ip" => Condition::SourceIp {
            values: source::addresses(reading, &values_at, values),
            not_values: source::addresses(reading, &not_values_at, not_values),
        },
        "source.namespace" => Condition::SourceNamespace {
            values: source::strings(reading, &values_at, values),
            not_values: source::strings(reading, &not_values_at, not_values),
        },
        "source.principal" => Condition::SourcePrincipal {
            values: source::principals(reading, &values_at, values),
            not_values: source::principals(reading, &not_values_at, not_values),
        },
        // A service account is the end of a principal, whatever the trust domain.
        "source.serviceAccount" => Condition::SourcePrincipal {
            values: principals(reading, &values_at, values),
            not_values: principals(reading, &not_values_at, not_values),
        },
        "destination.ip" => Condition::DestinationIp {
            values: source::addresses(reading, &values_at, values),
            not_values: source::addresses(reading, &not_values_at, not_values),
        },
        "destination.port" => Condition::DestinationPort {
            values: source::ports(reading, &values_at, values),
            not_values: source::ports(reading, &not_values_at, not_values),
        },
        _ if key == "remote.ip" || key.starts_with("request.") => {
            reading.warning(&key_at, NEEDS_HTTP);
            return Err(Needs::Http);
        }
        _ => {
            reading.warning(
                &key_at,
                format_args!(
                    "\"{key}\" is not supported; an allowing rule that has it matches nothing, a \
                     denying one whatever the rest of it matches"
                ),
            );
            return Err(Needs::Unsupported);
        }
    })
}

fn principals(reading: &mut Reading<'_>, at: &Path, values: Option<&[String]>) -> Vec<StringMatch> {
    source::service_accounts(reading, at, values)
        .into_iter()
        .map(|(namespace, name)| StringMatch::Suffix(format!("/ns/{namespace}/sa/{name}").into()))
        .collect()
}
