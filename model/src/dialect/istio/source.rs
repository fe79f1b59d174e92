use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::schema;
use crate::dialect::NEEDS_HTTP;
use crate::dialect::path::Path;
use crate::dialect::principal::{check_trust_domain, of_trust_domain};
use crate::dialect::reading::Reading;
use crate::dialect::selector::{canonical, cidr, is_dns_label, is_dns_subdomain, port};
use crate::mesh::{Operation, Source, StringMatch};

/// Istio's name for the trust domain of whatever mesh reads it.
const LOCAL_TRUST_DOMAIN: &str = "cluster.local";

/// `rules.from.source`.
pub(super) fn source(reading: &mut Reading<'_>, at: &Path, source: &schema::Source) -> Source {
    let at_field = |field: &str| at.field(field);
    let lists = [
        &source.principals,
        &source.not_principals,
        &source.request_principals,
        &source.not_request_principals,
        &source.namespaces,
        &source.not_namespaces,
        &source.service_accounts,
        &source.not_service_accounts,
        &source.ip_blocks,
        &source.not_ip_blocks,
        &source.remote_ip_blocks,
        &source.not_remote_ip_blocks,
    ];
    if lists.into_iter().all(is_empty) {
        reading.error(at, "is empty; leave `from` out to match every source");
    }
    let has_accounts =
        !is_empty(&source.service_accounts) || !is_empty(&source.not_service_accounts);
    let has_identities =
        ![&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces]
            .into_iter()
            .all(is_empty);
    if has_accounts && has_identities {
        reading.error(
            &at_field("serviceAccounts"),
            "stands beside principals or namespaces; write one or the other",
        );
    }
    for (field, list) in [
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        addresses(reading, &at_field(field), list.as_deref());
    }
    let http = [
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    Source {
        principals: principals(reading, &at_field("principals"), source.principals.as_deref()),
        not_principals: principals(
            reading,
            &at_field("notPrincipals"),
            source.not_principals.as_deref(),
        ),
        namespaces: strings(reading, &at_field("namespaces"), source.namespaces.as_deref()),
        not_namespaces: strings(
            reading,
            &at_field("notNamespaces"),
            source.not_namespaces.as_deref(),
        ),
        service_accounts: service_accounts(
            reading,
            &at_field("serviceAccounts"),
            source.service_accounts.as_deref(),
        ),
        not_service_accounts: service_accounts(
            reading,
            &at_field("notServiceAccounts"),
            source.not_service_accounts.as_deref(),
        ),
        ip_blocks: addresses(reading, &at_field("ipBlocks"), source.ip_blocks.as_deref()),
        not_ip_blocks: addresses(
            reading,
            &at_field("notIpBlocks"),
            source.not_ip_blocks.as_deref(),
        ),
        needs_http: needs_http(reading, at, &http),
    }
}

/// `rules.to.operation`.
pub(super) fn operation(
    reading: &mut Reading<'_>,
    at: &Path,
    operation: &schema::Operation,
) -> Operation {
    let http = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    let is_all_empty = http.iter().all(|(_, list)| is_empty(list));
    if is_all_empty && is_empty(&operation.ports) && is_empty(&operation.not_ports) {
        reading.error(at, "is empty; leave `to` out to match every operation");
    }
    Operation {
        ports: ports(reading, &at.field("ports"), operation.ports.as_deref()),
        not_ports: ports(reading, &at.field("notPorts"), operation.not_ports.as_deref()),
        needs_http: needs_http(reading, at, &http),
    }
}

/// Reports the fields that need HTTP; whether there are any.
fn needs_http(
    reading: &mut Reading<'_>,
    at: &Path,
    fields: &[(&str, &Option<Vec<String>>)],
) -> bool {
    let mut needs_http = false;
    for (field, list) in fields {
        if is_empty(list) {
            continue;
        }
        let at = at.field(field);
        for (index, value) in list.iter().flatten().enumerate() {
            check_not_empty(reading, &at.index(index), value);
        }
        reading.warning(&at, NEEDS_HTTP);
        needs_http = true;
    }
    needs_http
}

fn is_empty(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn check_not_empty(reading: &mut Reading<'_>, at: &Path, value: &str) {
    if value.is_empty() {
        reading.error(at, "is empty; `*` matches whatever is there");
    }
}

/// Values with a `*` at one end, or alone, as Istio matches them.
pub(super) fn strings(
    reading: &mut Reading<'_>,
    at: &Path,
    values: Option<&[String]>,
) -> Vec<StringMatch> {
    let mut matches = Vec::new();
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        check_not_empty(reading, &at.index(index), value);
        matches.push(string(value));
    }
    matches
}

/// The same of principals, in which Istio takes `cluster.local` for the mesh's trust domain,
/// whatever that is (`trustdomain.Bundle.ReplaceTrustDomainAliases`).
pub(super) fn principals(
    reading: &mut Reading<'_>,
    at: &Path,
    values: Option<&[String]>,
) -> Vec<StringMatch> {
    let mut matches = Vec::new();
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        let at = at.index(index);
        check_not_empty(reading, &at, value);
        matches.push(match of_trust_domain(value) {
            Some((LOCAL_TRUST_DOMAIN, path)) => {
                string(&format!("{}/{path}", reading.settings.trust_domain))
            }
            _ => {
                check_trust_domain(reading, &at, value);
                string(value)
            }
        });
    }
    matches
}

fn string(value: &str) -> StringMatch {
    if value == "*" {
        StringMatch::Present
    } else if let Some(suffix) = value.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = value.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(value.into())
    }
}

/// Addresses and blocks of addresses.
pub(super) fn addresses(
    reading: &mut Reading<'_>,
    at: &Path,
    values: Option<&[String]>,
) -> Vec<IpNet> {
    let values = values.unwrap_or_default().iter().enumerate();
    values
        .filter_map(|(index, value)| match value.parse::<IpAddr>() {
            Ok(address) => Some(canonical(IpNet::from(address))),
            Err(_) => cidr(reading, &at.index(index), value),
        })
        .collect()
}

/// Ports, which are written as text.
pub(super) fn ports(reading: &mut Reading<'_>, at: &Path, values: Option<&[String]>) -> Vec<u16> {
    let mut ports = Vec::new();
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        let at = at.index(index);
        match value.parse::<i64>() {
            Ok(number) => ports.extend(port(reading, &at, number)),
            Err(_) => reading.error(&at, format_args!("\"{value}\" is no port; write a number")),
        }
    }
    ports
}

/// `namespace/name`, or the name of an account in the policy's namespace.
pub(super) fn service_accounts(
    reading: &mut Reading<'_>,
    at: &Path,
    values: Option<&[String]>,
) -> Vec<(Arc<str>, Arc<str>)> {
    let mut accounts = Vec::new();
    for (index, value) in values.unwrap_or_default().iter().enumerate() {
        let own = Arc::clone(&reading.object.name.namespace);
        let (namespace, name) = match value.split_once('/') {
            Some((namespace, name)) => (Arc::from(namespace), name),
            None => (own, value.as_str()),
        };
        if !is_dns_label(&namespace) || !is_dns_subdomain(name) {
            reading.error(
                &at.index(index),
                format_args!(
                    "\"{value}\" is no service account; write `namespace/name` or `name`, \
                     without `*`"
                ),
            );
        }
        accounts.push((namespace, name.into()));
    }
    accounts
}
