//! SPIFFE ids of workloads.

use std::fmt;
use std::sync::Arc;

use weft_model::dialect::is_trust_domain;

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>` (SPIFFE ID specification; the
/// path is the one that Istio uses).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// The id of a service account.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").into())
    }

    /// Reads the URI of a service account's identity.
    ///
    /// # Errors
    /// With a sentence about what is wrong with it.
    pub fn read(uri: &str) -> Result<Self, String> {
        let id = Self(uri.into());
        match id.parts() {
            Some((domain, namespace, account))
                if is_trust_domain(domain) && is_name(namespace) && is_name(account) =>
            {
                Ok(id)
            }
            _ => Err(format!(
                "{uri:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
            )),
        }
    }

    /// Trust domain, namespace and service account.
    pub fn parts(&self) -> Option<(&str, &str, &str)> {
        let (domain, path) = self.0.strip_prefix("spiffe://")?.split_once("/ns/")?;
        let (namespace, account) = path.split_once("/sa/")?;
        Some((domain, namespace, account))
    }

    /// The URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What names of namespaces and service accounts are made of (RFC 1123).
fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !name.is_empty() && name.len() <= 253 && name.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::SpiffeId;

    #[test]
    fn an_identity_is_read_as_it_was_written_and_nothing_else_is() {
        let id = SpiffeId::new("cluster.local", "shop", "web.front");
        assert_eq!(SpiffeId::read(id.as_str()), Ok(id.clone()));
        assert_eq!(id.parts(), Some(("cluster.local", "shop", "web.front")));
        let domain = SpiffeId::new("shop_1.example", "shop", "web");
        assert_eq!(SpiffeId::read(domain.as_str()), Ok(domain));
        for bad in [
            "",
            "spiffe://Cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local",
            "https://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns//sa/web",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/ns/shop/sa/Web",
            "spiffe://cluster.local/ns/shop/x/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web?x",
        ] {
            assert!(SpiffeId::read(bad).is_err(), "{bad}");
        }
    }
}
