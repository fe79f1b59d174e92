//! The cluster's certificate authority, and what it has signed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// A certificate authority whose files lie in one directory: `ca.crt`, and `NAME.crt` and
/// `NAME.key` of everyone.
pub(crate) struct Pki {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Who somebody is to the API server.
pub(crate) struct User<'a> {
    pub(crate) name: &'a str,
    pub(crate) group: Option<&'a str>,
}

impl Pki {
    /// Makes the authority.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "weft-test-cluster");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate()?;
        fs::write(directory.join("ca.crt"), parameters.self_signed(&key)?.pem())?;
        // The controller manager signs with it what kubelets and users ask for.
        fs::write(directory.join("ca.key"), key.serialize_pem())?;
        Ok(Self { directory: directory.to_path_buf(), issuer: Issuer::new(parameters, key) })
    }

    /// Its own certificate and key.
    pub(crate) fn authority(&self) -> Credentials {
        self.credentials("ca")
    }

    /// A certificate for a server that is known by these names and addresses.
    pub(crate) fn server(&self, name: &str, known_as: &[String]) -> Result<Credentials> {
        let mut parameters = CertificateParams::new(known_as.to_vec())?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(name, parameters)
    }

    /// A certificate by which the API server knows a user.
    pub(crate) fn client(&self, file: &str, user: &User<'_>) -> Result<Credentials> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, user.name);
        if let Some(group) = user.group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, parameters)
    }

    /// A certificate for a user, in a kubeconfig for the API server at `server`.
    pub(crate) fn kubeconfig(&self, file: &str, server: &str, user: &User<'_>) -> Result<PathBuf> {
        let credentials = self.client(file, user)?;
        let embed = |path: &Path| -> Result<String> { Ok(STANDARD.encode(fs::read(path)?)) };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "weft", "cluster": {
                "server": server,
                "certificate-authority-data": embed(&self.authority().certificate)?,
            }}],
            "users": [{ "name": user.name, "user": {
                "client-certificate-data": embed(&credentials.certificate)?,
                "client-key-data": embed(&credentials.key)?,
            }}],
            "contexts": [{ "name": "weft", "context": { "cluster": "weft", "user": user.name } }],
            "current-context": "weft",
        });
        let path = self.directory.join(format!("{file}.kubeconfig"));
        fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
        Ok(path)
    }

    /// A pair of keys, `NAME.key` and `NAME.pub`, for tokens of service accounts.
    pub(crate) fn key_pair(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let pair = KeyPair::generate()?;
        let path = |extension: &str| self.directory.join(format!("{name}.{extension}"));
        fs::write(path("key"), pair.serialize_pem())?;
        fs::write(path("pub"), pair.public_key_pem())?;
        Ok((path("key"), path("pub")))
    }

    fn sign(&self, name: &str, mut parameters: CertificateParams) -> Result<Credentials> {
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        let credentials = self.credentials(name);
        fs::write(&credentials.certificate, certificate.pem())?;
        fs::write(&credentials.key, key.serialize_pem())
            .with_context(|| credentials.key.display().to_string())?;
        Ok(credentials)
    }

    fn credentials(&self, name: &str) -> Credentials {
        let path = |extension: &str| self.directory.join(format!("{name}.{extension}"));
        Credentials { certificate: path("crt"), key: path("key") }
    }
}
