//! Certificates: an authority that issues them, the `weft ca` process around it, and the agent's
//! side.
//!
//! In standalone mode an [`Authority`] of the agent's own has its root in a directory, and agents
//! that share the directory share the root. In a cluster the root is in a Secret ([`material`]),
//! [`service`] issues, and the agent's [`client`] asks for what [`WorkloadCertificates`] wants.

pub mod caller;
pub mod channel;
pub mod client;
mod directory;
pub mod election;
pub mod listen;
pub mod material;
pub mod pods;
pub mod publish;
pub mod request;
pub mod root;
pub mod service;
pub mod trust;
mod workloads;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose::ServerAuth;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::identity::SpiffeId;

pub use material::Material;
pub use workloads::{Issued, Source, WorkloadCertificates};

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
    /// The authority's own certificate has ended.
    #[error(
        "the authority's own certificate, or one above it, ended at {not_after}: put a new one \
         in its place"
    )]
    Ended {
        /// When it ended.
        not_after: OffsetDateTime,
    },
    /// The system has no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The authority did not issue.
    #[error("{0}")]
    Refused(String),
    /// The library refuses.
    #[error("certificate for {subject}: {source}")]
    Crypto {
        /// What the certificate was for.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// What issues certificates: a root, or an intermediate below one.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// DER, the issuer's first, without the root; empty where the root itself issues.
    intermediates: Vec<Vec<u8>>,
    /// The root that its certificates end in, DER.
    root: Vec<u8>,
    roots_pem: String,
    not_after: SystemTime,
    life: Duration,
}

/// Whom a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A workload: client and server.
    Workload(&'a SpiffeId),
    /// A server with DNS names.
    Server(&'a [String]),
}

/// A certificate without its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// DER, leaf first, without the root.
    pub chain: Vec<Vec<u8>>,
    /// Hexadecimal, for the log.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
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
        let malformed = |reason| CaError::Malformed { path: directory.to_owned(), reason };
        let roots = material::certificates(root_pem.as_bytes()).map_err(malformed)?;
        let Some(root) = roots.into_iter().next() else {
            return Err(malformed("no certificate".to_owned()));
        };
        let not_after = material::not_after(&root).map_err(malformed)?;
        let issuer = Issuer::from_ca_cert_pem(&root_pem, key).map_err(|source| {
            CaError::Crypto { subject: format!("trust domain {trust_domain}"), source }
        })?;
        Ok(Self { issuer, intermediates: Vec::new(), root, roots_pem: root_pem, not_after, life })
    }

    /// From a root's or an intermediate's certificates and key.
    ///
    /// # Errors
    /// Where the library refuses.
    pub fn new(material: Material, life: Duration) -> Result<Self, CaError> {
        let issuer =
            Issuer::from_ca_cert_der(&material.issuer.into(), material.key).map_err(|source| {
                CaError::Crypto { subject: "the issuer's certificate".to_owned(), source }
            })?;
        Ok(Self {
            issuer,
            intermediates: material.intermediates,
            root: material.root,
            roots_pem: material::pem(&material.roots),
            not_after: material.not_after,
            life,
        })
    }

    /// The root that its certificates end in, DER.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// The roots that go with it, in PEM.
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// When its own certificate, or one above it, ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// How long its certificates live, unless asked otherwise.
    pub fn life(&self) -> Duration {
        self.life
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
        let key = new_key(identity.as_str())?;
        let Certified { chain, not_after, .. } =
            self.certify(&Subject::Workload(identity), &key, now, self.life)?;
        Ok(WorkloadCertificate {
            identity: identity.clone(),
            chain,
            key: key.serialize_der(),
            not_after,
            renew_at: now + not_after.duration_since(now).unwrap_or_default() / 2,
        })
    }

    /// A certificate for a key that is elsewhere. It begins `now`, and ends after `life`, or with
    /// the authority.
    ///
    /// # Errors
    /// Where the authority has ended, or the library refuses.
    pub fn certify(
        &self,
        subject: &Subject<'_>,
        key: &impl PublicKeyData,
        now: SystemTime,
        life: Duration,
    ) -> Result<Certified, CaError> {
        if self.not_after <= now {
            return Err(CaError::Ended { not_after: self.not_after.into() });
        }
        let not_after = (now + life).min(self.not_after);
        let mut params = CertificateParams::default();
        // The SPIFFE id is the name; an empty subject is what X.509-SVID asks for.
        params.distinguished_name = DistinguishedName::new();
        let (name, usages) = match subject {
            Subject::Workload(identity) => {
                (identity.to_string(), vec![ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
            }
            Subject::Server(names) => (names.join(", "), vec![ServerAuth]),
        };
        let refused = |source| CaError::Crypto { subject: name.clone(), source };
        params.subject_alt_names = match subject {
            Subject::Workload(identity) => {
                vec![SanType::URI(identity.as_str().try_into().map_err(refused)?)]
            }
            Subject::Server(names) => names
                .iter()
                .map(|name| name.as_str().try_into().map(SanType::DnsName))
                .collect::<Result<_, _>>()
                .map_err(refused)?,
        };
        let serial = new_serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(refused)?;
        let mut chain = vec![certificate.der().to_vec()];
        chain.extend_from_slice(&self.intermediates);
        let serial = serial.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Certified { chain, serial, not_after })
    }
}

/// A key for a certificate.
///
/// # Errors
/// Where the library refuses.
pub fn new_key(subject: &str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|source| CaError::Crypto { subject: subject.to_owned(), source })
}

/// 127 random bits (RFC 5280, section 4.1.2.2: positive, at most 20 bytes).
fn new_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| CaError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
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
