//! The certificate authority of standalone mode: a directory is the trust root. Agents that
//! share the directory share the root.

mod directory;
mod workloads;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::OffsetDateTime;

use crate::identity::SpiffeId;

pub use workloads::{Issued, WorkloadCertificates};

/// How long a root lives.
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// By how much clocks of nodes may differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Why a certificate cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file or the directory cannot be used.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Others may read the key.
    #[error("{path}: mode {mode:o} lets others than its owner read the root's key; chmod 600 it")]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate is there, its key is not.
    #[error(
        "{certificate} is there, but {key} is not: put the key back, or remove the certificate \
         to make a new root (peers must then get it too)"
    )]
    KeyMissing {
        /// The certificate's file.
        certificate: PathBuf,
        /// Where its key belongs.
        key: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory is the root of another trust domain.
    #[error(
        "{path} is the root of trust domain {found:?}, and the agent's is {wanted:?}: give \
         --trust-domain {found}, or another --ca-dir"
    )]
    TrustDomain {
        /// The certificate's file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The library refuses.
    #[error("certificate for {subject}: {source}")]
    Crypto {
        /// What the certificate was for.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// A trust root that issues certificates for workloads.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    life: Duration,
}

/// A workload's certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct WorkloadCertificate {
    /// Whose it is.
    pub identity: SpiffeId,
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub key: Vec<u8>,
    /// When it ends.
    pub not_after: SystemTime,
    /// When another should be had.
    pub renew_at: SystemTime,
}

impl Authority {
    /// Reads the root from `directory`, or makes it there. Safe when several agents do so at
    /// once. Certificates live for `life`.
    ///
    /// # Errors
    /// Where the directory cannot be used, or holds something else than a root of
    /// `trust_domain`.
    pub fn open(
        directory: &std::path::Path,
        trust_domain: &str,
        life: Duration,
    ) -> Result<Self, CaError> {
        let (root_pem, key) = directory::open(directory, trust_domain)?;
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key).map_err(|source| {
            CaError::Crypto { subject: format!("trust domain {trust_domain}"), source }
        })?;
        Ok(Self { issuer, root_pem, life })
    }

    /// The root, in PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A new key, and a certificate for it that begins `now`.
    ///
    /// # Errors
    /// Where the library refuses.
    pub fn issue(
        &self,
        identity: &SpiffeId,
        now: SystemTime,
    ) -> Result<WorkloadCertificate, CaError> {
        let refused = |source| CaError::Crypto { subject: identity.to_string(), source };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
        let not_after = now + self.life;

        let mut params = CertificateParams::default();
        // The SPIFFE id is the name; an empty subject is what X.509-SVID asks for.
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.as_str().try_into().map_err(refused)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(refused)?;

        Ok(WorkloadCertificate {
            identity: identity.clone(),
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
            not_after,
            renew_at: now + self.life / 2,
        })
    }
}

/// A new root for a trust domain.
fn root(trust_domain: &str, key: &KeyPair, now: SystemTime) -> Result<String, CaError> {
    let refused =
        |source| CaError::Crypto { subject: format!("trust domain {trust_domain}"), source };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "Weft root");
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(refused)?)];
    params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
    params.not_after = OffsetDateTime::from(now + ROOT_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key).map_err(refused)?.pem())
}
