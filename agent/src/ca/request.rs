//! Certificate signing requests (PKCS #10, RFC 2986): of one, only the public key counts.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::CaError;
use crate::identity::SpiffeId;

/// A request for `identity`, DER.
///
/// # Errors
/// Where the library refuses.
pub fn write(identity: &SpiffeId, key: &KeyPair) -> Result<Vec<u8>, CaError> {
    let refused = |source| CaError::Crypto { subject: identity.to_string(), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(refused)?)];
    Ok(params.serialize_request(key).map_err(refused)?.der().to_vec())
}

/// The public key of a request whose signature shows that whoever made it has the key.
///
/// # Errors
/// With a sentence about what is wrong with it.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, String> {
    let (rest, request) = X509CertificationRequest::from_der(der)
        .map_err(|error| format!("csr: no certificate signing request: {error}"))?;
    if !rest.is_empty() {
        return Err("csr: something follows the certificate signing request".to_owned());
    }
    request
        .verify_signature()
        .map_err(|error| format!("csr: its signature is not that of its key: {error}"))?;
    let key = request.certification_request_info.subject_pki.raw;
    SubjectPublicKeyInfo::from_der(key)
        .map_err(|error| format!("csr: a key of a kind that is not supported: {error}"))
}

/// The same of a request in PEM.
///
/// # Errors
/// With a sentence about what is wrong with it.
pub fn public_key_of_pem(pem: &str) -> Result<SubjectPublicKeyInfo, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|error| format!("csr: no PEM: {error}"))?;
    public_key(&block.contents)
}
