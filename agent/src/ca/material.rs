//! What an authority is made of: the certificates and the key that a Secret holds, in the layout of
//! `kubernetes.io/tls` and cert-manager (`tls.crt`, `tls.key`, `ca.crt`).

#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CaError, new_key, root as new_root};

/// Certificates of at least this many levels are followed up to a root.
const MAX_DEPTH: usize = 8;

/// An issuer and the way up to its roots.
#[derive(Debug)]
pub struct Material {
    /// The issuer's certificate, DER.
    pub issuer: Vec<u8>,
    /// Its key.
    pub key: KeyPair,
    /// DER, the issuer's first, without the root; empty where the root itself issues.
    pub intermediates: Vec<Vec<u8>>,
    /// The root that the issuer's chain ends in, DER.
    pub root: Vec<u8>,
    /// All roots that the Secret names, that one among them, DER.
    pub roots: Vec<Vec<u8>>,
    /// When the first of the chain's certificates ends.
    pub not_after: SystemTime,
}

impl Material {
    /// Reads and checks the three fields at the time `now`. Without `ca.crt` the root is the last
    /// certificate in `tls.crt`.
    ///
    /// # Errors
    /// With a sentence that names the field.
    pub fn read(
        tls_crt: &[u8],
        tls_key: &[u8],
        ca_crt: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<Self, String> {
        let chain = certificates(tls_crt).map_err(|error| format!("tls.crt: {error}"))?;
        let key = std::str::from_utf8(tls_key)
            .map_err(|error| error.to_string())
            .and_then(|pem| KeyPair::from_pem(pem).map_err(|error| error.to_string()))
            .map_err(|error| format!("tls.key: no private key in PEM: {error}"))?;
        let roots = match ca_crt {
            Some(pem) => certificates(pem).map_err(|error| format!("ca.crt: {error}"))?,
            None => self_signed_last(&chain)?,
        };
        let Some(issuer) = chain.first() else { return Err("tls.crt: no certificate".to_owned()) };
        check_issuer(issuer, &key).map_err(|error| format!("tls.crt: {error}"))?;
        for root in &roots {
            check_authority(root).map_err(|error| format!("ca.crt: {error}"))?;
        }

        let (path, root) = path_to_root(&chain, &roots)?;
        let mut not_after = self::not_after(&root)?;
        for certificate in path.iter().chain([&root]) {
            let (from, until) = validity(certificate)?;
            if now < from || until <= now {
                return Err(format!(
                    "tls.crt: {} is valid only from {} to {}",
                    subject(certificate),
                    time::OffsetDateTime::from(from),
                    time::OffsetDateTime::from(until),
                ));
            }
            not_after = not_after.min(until);
        }
        let issuer = issuer.clone();
        Ok(Self { issuer, key, intermediates: path, root, roots, not_after })
    }

    /// Itself, where its root does not name another trust domain. One that somebody else made may
    /// name none.
    ///
    /// # Errors
    /// With a sentence that names both.
    pub fn of_trust_domain(self, wanted: &str) -> Result<Self, String> {
        match trust_domain(&parse(&self.root)?) {
            Some(found) if found != wanted => Err(format!(
                "ca.crt: is the root of trust domain {found:?}, and this authority's is \
                 {wanted:?}: give --trust-domain {found}, or another root"
            )),
            _ => Ok(self),
        }
    }

    /// A root of our own: `tls.crt` and `tls.key`.
    ///
    /// # Errors
    /// Where the library refuses.
    pub fn generate(trust_domain: &str, now: SystemTime) -> Result<(String, String), CaError> {
        let key = new_key(&format!("trust domain {trust_domain}"))?;
        Ok((new_root(trust_domain, &key, now)?, key.serialize_pem()))
    }
}

/// The certificates in a text of PEM, DER.
///
/// # Errors
/// Where there is none, or one is malformed.
pub fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut certificates: Vec<Vec<u8>> = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("no certificate in PEM: {error}"))?;
        parse(&certificate)?;
        if !certificates.iter().any(|known| known.as_slice() == certificate.as_ref()) {
            certificates.push(certificate.to_vec());
        }
    }
    if certificates.is_empty() {
        return Err("no certificate in PEM".to_owned());
    }
    Ok(certificates)
}

/// Certificates as PEM.
pub fn pem(certificates: &[Vec<u8>]) -> String {
    certificates.iter().map(|der| pem_of(der)).collect()
}

/// One certificate as PEM.
pub fn pem_of(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = data_encoding::BASE64.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// When a certificate ends.
///
/// # Errors
/// Where it is malformed.
pub fn not_after(der: &[u8]) -> Result<SystemTime, String> {
    validity(der).map(|(_, until)| until)
}

/// Its subject, for people.
pub fn subject(der: &[u8]) -> String {
    match parse(der) {
        Ok(certificate) => certificate.subject().to_string(),
        Err(error) => error,
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| format!("no certificate: {error}"))?;
    Ok(certificate)
}

fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), String> {
    let certificate = parse(der)?;
    let time = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    Ok((time(certificate.validity().not_before), time(certificate.validity().not_after)))
}

/// The trust domain that a certificate names (X.509-SVID, section 3.1).
pub(super) fn trust_domain<'a>(certificate: &X509Certificate<'a>) -> Option<&'a str> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return None;
        };
        names.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            _ => None,
        })
    })
}

fn check_authority(der: &[u8]) -> Result<(), String> {
    let certificate = parse(der)?;
    if !certificate.is_ca() {
        return Err(format!(
            "{} is not the certificate of an authority (CA:TRUE); with cert-manager, set `isCA: \
             true` in the Certificate",
            certificate.subject()
        ));
    }
    Ok(())
}

fn check_issuer(der: &[u8], key: &KeyPair) -> Result<(), String> {
    check_authority(der)?;
    let certificate = parse(der)?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(format!(
            "the first certificate, {}, is not that of the key in tls.key",
            certificate.subject()
        ));
    }
    if let Ok(Some(usage)) = certificate.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(format!(
            "{} may not sign certificates (its key usage lacks keyCertSign)",
            certificate.subject()
        ));
    }
    Ok(())
}

/// The root, where there is no `ca.crt`.
fn self_signed_last(chain: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
    match chain.last() {
        Some(last) if signed(last, last) => Ok(vec![last.clone()]),
        _ => Err("ca.crt: is not there, and the last certificate in tls.crt is no root: put the \
                  root into ca.crt"
            .to_owned()),
    }
}

/// The certificates from the issuer's up to below a root, and that root.
fn path_to_root(chain: &[Vec<u8>], roots: &[Vec<u8>]) -> Result<(Vec<Vec<u8>>, Vec<u8>), String> {
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut current = chain.first();
    while let Some(certificate) = current {
        if roots.contains(certificate) {
            return Ok((path, certificate.clone()));
        }
        path.push(certificate.clone());
        if let Some(root) = roots.iter().find(|root| signed(certificate, root)) {
            return Ok((path, root.clone()));
        }
        if path.len() > MAX_DEPTH {
            break;
        }
        current = chain.iter().find(|above| !path.contains(above) && signed(certificate, above));
    }
    let last = path.last().map(|last| subject(last)).unwrap_or_default();
    Err(format!(
        "tls.crt: {last} was signed by none of the certificates in tls.crt and ca.crt: put the \
         missing intermediates into tls.crt, and the root into ca.crt"
    ))
}

fn signed(certificate: &[u8], by: &[u8]) -> bool {
    let (Ok(certificate), Ok(by)) = (parse(certificate), parse(by)) else { return false };
    certificate.issuer() == by.subject()
        && certificate.verify_signature(Some(by.public_key())).is_ok()
}
