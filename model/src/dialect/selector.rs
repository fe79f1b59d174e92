//! Label selectors and names, with the API server's validation.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::path::Path;
use super::reading::Reading;
use crate::mesh::{Labels, Operator, Requirement, Selector};

/// A selector; reports what is wrong with it.
pub(super) fn selector(reading: &mut Reading<'_>, at: &Path, labels: &LabelSelector) -> Selector {
    let mut requirements = Vec::new();
    let match_labels = at.field("matchLabels");
    for (key, value) in labels.match_labels.iter().flatten() {
        let at = match_labels.field(key);
        check_key(reading, &at, key);
        check_value(reading, &at, value);
        requirements.push(Requirement {
            key: key.as_str().into(),
            operator: Operator::In(vec![value.as_str().into()]),
        });
    }
    let expressions = at.field("matchExpressions");
    for (index, expression) in labels.match_expressions.iter().flatten().enumerate() {
        let at = expressions.index(index);
        check_key(reading, &at.field("key"), &expression.key);
        let values = expression.values.as_deref().unwrap_or_default();
        if let Some(operator) = operator(reading, &at, &expression.operator, values) {
            requirements.push(Requirement { key: expression.key.as_str().into(), operator });
        }
    }
    Selector { requirements }
}

/// An operator with its values; reports what is wrong with it.
pub(super) fn operator(
    reading: &mut Reading<'_>,
    at: &Path,
    operator: &str,
    values: &[String],
) -> Option<Operator> {
    let values_at = at.field("values");
    for (index, value) in values.iter().enumerate() {
        check_value(reading, &values_at.index(index), value);
    }
    let list = || values.iter().map(|value| value.as_str().into()).collect();
    match (operator, values.is_empty()) {
        ("In", false) => return Some(Operator::In(list())),
        ("NotIn", false) => return Some(Operator::NotIn(list())),
        ("Exists", true) => return Some(Operator::Exists),
        ("DoesNotExist", true) => return Some(Operator::DoesNotExist),
        ("In" | "NotIn", true) => {
            reading.error(&values_at, format_args!("{operator} takes at least one value"));
        }
        ("Exists" | "DoesNotExist", false) => reading
            .error(&values_at, format_args!("{operator} takes no values; use In, or remove them")),
        _ => reading.error(
            &at.field("operator"),
            format_args!("\"{operator}\" is none of In, NotIn, Exists, DoesNotExist"),
        ),
    }
    None
}

/// Reports what is no key of a label.
pub(super) fn check_key(reading: &mut Reading<'_>, at: &Path, key: &str) {
    if !is_label_key(key) {
        reading.error(
            at,
            format_args!(
                "\"{key}\" is no key of a label: at most 63 letters, digits, '-', '_' and '.', \
                 optionally after a DNS name and '/'"
            ),
        );
    }
}

/// Reports what is no value of a label.
pub(super) fn check_value(reading: &mut Reading<'_>, at: &Path, value: &str) {
    if !is_label_value(value) {
        reading.error(
            at,
            format_args!(
                "\"{value}\" is no value of a label: at most 63 letters, digits, '-', '_' and \
                 '.', a letter or digit at both ends"
            ),
        );
    }
}

/// Labels as they are.
pub(super) fn labels(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
        .collect()
}

/// A qualified name (apimachinery `IsQualifiedName`).
pub(super) fn is_label_key(key: &str) -> bool {
    let name = match key.split_once('/') {
        Some((prefix, name)) if is_dns_subdomain(prefix) => name,
        Some(_) => return false,
        None => key,
    };
    !name.is_empty() && is_label_value(name)
}

/// A label's value (apimachinery `IsValidLabelValue`).
pub(super) fn is_label_value(value: &str) -> bool {
    value.len() <= 63
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && has_alphanumeric_ends(value)
}

/// apimachinery `IsDNS1123Subdomain`.
pub(super) fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(is_dns_byte) && has_alphanumeric_ends(label)
        })
}

/// apimachinery `IsDNS1123Label`.
pub(super) fn is_dns_label(name: &str) -> bool {
    name.len() <= 63 && !name.contains('.') && is_dns_subdomain(name)
}

/// apimachinery `IsValidPortName`.
pub(super) fn is_port_name(name: &str) -> bool {
    name.len() <= 15
        && name.bytes().all(is_dns_byte)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_dns_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn has_alphanumeric_ends(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    is_end(text.bytes().next()) && is_end(text.bytes().next_back())
}

/// A block of addresses, its host bits cleared; reports one that is none.
pub(super) fn cidr(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<IpNet> {
    let cidr = text.parse().ok().map(canonical);
    if cidr.is_none() {
        reading
            .error(at, format_args!("\"{text}\" is no CIDR; write it as 10.0.0.0/8 or fd00::/8"));
    }
    cidr
}

/// An address; reports one that is none.
pub(super) fn address(reading: &mut Reading<'_>, at: &Path, text: &str) -> Option<IpAddr> {
    let address = text.parse().ok().map(|address: IpAddr| address.to_canonical());
    if address.is_none() {
        reading.error(at, format_args!("\"{text}\" is no IP address"));
    }
    address
}

/// The block without host bits; `::ffff:a.b.c.d` is an IPv4 address.
pub(super) fn canonical(cidr: IpNet) -> IpNet {
    let mapped = match cidr {
        IpNet::V6(block) => block.addr().to_ipv4_mapped().zip(block.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let mapped = mapped.and_then(|(address, len)| IpNet::new(address.into(), len).ok());
    mapped.unwrap_or(cidr).trunc()
}

/// A port from 1 to 65535; reports one that is none.
pub(super) fn port(reading: &mut Reading<'_>, at: &Path, port: i64) -> Option<u16> {
    let port_number = u16::try_from(port).ok().filter(|port| *port != 0);
    if port_number.is_none() {
        reading.error(at, format_args!("{port} is no port; ports go from 1 to 65535"));
    }
    port_number
}
