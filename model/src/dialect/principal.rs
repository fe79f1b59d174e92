//! SPIFFE identities as policies write them.

use super::path::Path;
use super::reading::Reading;
use super::selector::{is_dns_label, is_dns_subdomain};
use crate::mesh::StringMatch;

/// An identity, with or without `spiffe://`, exact or with a `*` at one end, as Istio takes
/// principals; reports what is none.
pub(super) fn principal(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<StringMatch> {
    let value = text.strip_prefix("spiffe://").unwrap_or(text);
    let wanted = match value.strip_prefix('*') {
        Some("") => StringMatch::Present,
        Some(suffix) => StringMatch::Suffix(suffix.into()),
        None => match value.strip_suffix('*') {
            Some(prefix) => StringMatch::Prefix(prefix.into()),
            None => StringMatch::Exact(value.into()),
        },
    };
    match &wanted {
        StringMatch::Exact(exact) if !is_identity(exact) => reading.error(
            at,
            format_args!(
                "\"{text}\" is no identity; write spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, or a \
                 part of it with a * at one end"
            ),
        ),
        StringMatch::Prefix(part) | StringMatch::Suffix(part) if part.contains('*') => {
            reading.error(at, "a * stands at one end, and nowhere else");
        }
        _ => {
            check_trust_domain(reading, at, value);
            return Some(wanted);
        }
    }
    None
}

/// Reports a whole identity of another trust domain than the mesh's, which nobody here has.
pub(super) fn check_trust_domain(reading: &mut Reading<'_>, at: &Path, identity: &str) {
    let own = reading.settings.trust_domain.clone();
    if let Some((domain, path)) = of_trust_domain(identity)
        && *domain != *own
    {
        reading.warning(
            at,
            format_args!(
                "\"{domain}\" is not the mesh's trust domain, so nobody has this identity; write \
                 {own}/{path}"
            ),
        );
    }
}

/// The trust domain of an identity, and the rest of it; none where it is not whole, or a `*`
/// stands in the trust domain's place.
pub(super) fn of_trust_domain(identity: &str) -> Option<(&str, &str)> {
    let (domain, path) = identity.split_once('/')?;
    (identity.split('/').count() == 5 && !domain.contains('*')).then_some((domain, path))
}

fn is_identity(text: &str) -> bool {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default();
    let (domain, ns, namespace, sa, account) = (next(), next(), next(), next(), next());
    is_trust_domain(domain)
        && (ns, sa) == ("ns", "sa")
        && is_dns_label(namespace)
        && is_dns_subdomain(account)
        && parts.next().is_none()
}

/// Whether a text is the name of a trust domain (SPIFFE-ID, 2.1): lower-case letters, digits, '.',
/// '-' and '_'.
pub fn is_trust_domain(text: &str) -> bool {
    let is_part = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
    };
    !text.is_empty() && text.len() <= 255 && text.bytes().all(is_part)
}
