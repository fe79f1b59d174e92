use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// A text or certificate that is no workload's identity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidIdentity {
    /// The text is not of the form that the mesh uses.
    #[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// SPIFFE's X.509-SVID, section 2: exactly one URI in the subject alternative name.
    #[error("the certificate has {0} URIs as subject alternative names, and must have one")]
    Count(usize),
}

impl SpiffeId {
    /// Checks the form.
    ///
    /// # Errors
    /// [`InvalidIdentity::Form`]
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        match parts(text) {
            Some(parts) if parts.iter().all(|part| is_name(part)) => Ok(Self(text.into())),
            _ => Err(InvalidIdentity::Form(text.to_owned())),
        }
    }

    /// The identity that a certificate is for.
    ///
    /// # Errors
    /// Anything but exactly one URI, of the right form.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, InvalidIdentity> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|error| InvalidIdentity::Certificate(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| InvalidIdentity::Certificate(error.to_string()))?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris[..] {
            [uri] => Self::parse(uri),
            _ => Err(InvalidIdentity::Count(uris.len())),
        }
    }

    /// The identity as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How a tunnel's client names this identity to the server (SNI), which must be a DNS name:
    /// `<service account>.<namespace>.sa.<trust domain>` where that is one, otherwise
    /// `<hash>.id.weft.invalid` with the first 160 bits of the SHA-256 of the SPIFFE id. The name
    /// only selects: what counts is the URI in the certificate.
    pub fn server_name(&self) -> String {
        if let Some([trust_domain, namespace, account]) = parts(&self.0) {
            let name = format!("{account}.{namespace}.sa.{trust_domain}").to_ascii_lowercase();
            let is_label = |label: &str| {
                (1..=63).contains(&label.len())
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            if name.len() <= 253 && name.split('.').all(is_label) {
                return name;
            }
        }
        use std::fmt::Write;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.0.as_bytes());
        let mut name = String::with_capacity(64);
        for byte in hash.as_ref().iter().take(20) {
            let _ = write!(name, "{byte:02x}");
        }
        name.push_str(".id.weft.invalid");
        name
    }
}

/// Trust domain, namespace, service account.
fn parts(text: &str) -> Option<[&str; 3]> {
    let (trust_domain, path) = text.strip_prefix("spiffe://")?.split_once('/')?;
    let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
    Some([trust_domain, namespace, account])
}

/// SPIFFE-ID, sections 2.1 and 2.2: the characters of a trust domain or path segment.
fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part != "."
        && part != ".."
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_identities_are_read() {
        assert!(SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").is_ok());
        for text in [
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "https://cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/sh op/sa/web",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn server_names_are_dns_names() {
        let name = |text: &str| SpiffeId::parse(text).unwrap().server_name();
        assert_eq!(
            name("spiffe://cluster.local/ns/shop/sa/web.v2"),
            "web.v2.shop.sa.cluster.local"
        );
        let long = "a".repeat(64);
        for account in ["with_underscore", "trailing-", &long] {
            let name = name(&format!("spiffe://cluster.local/ns/shop/sa/{account}"));
            assert!(name.ends_with(".id.weft.invalid"), "{name}");
            assert!(rustls::pki_types::ServerName::try_from(name).is_ok());
        }
    }
}
