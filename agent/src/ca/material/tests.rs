use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, SignatureAlgorithm,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;

use super::{Material, certificates};
use crate::ca::{Authority, Subject, new_key};
use crate::identity::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);

struct Level {
    pem: String,
    key: KeyPair,
    params: CertificateParams,
}

impl Level {
    fn below(above: Option<&Self>, name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = match above {
            Some(above) => {
                let issuer = Issuer::from_params(&above.params, &above.key);
                params.signed_by(&key, &issuer)
            }
            None => params.self_signed(&key),
        };
        Self { pem: certificate.unwrap().pem(), key, params }
    }
}

fn read(crt: &str, key: &KeyPair, ca: Option<&str>) -> Result<Material, String> {
    let key = key.serialize_pem();
    Material::read(crt.as_bytes(), key.as_bytes(), ca.map(str::as_bytes), SystemTime::now())
}

/// Issues, and lets rustls judge the result by the roots.
fn issues(material: Material, roots: &str) -> usize {
    let authority = Authority::new(material, HOUR).unwrap();
    let identity = SpiffeId::new("cluster.local", "shop", "web");
    let key = new_key("test").unwrap();
    let subject = Subject::Workload(&identity);
    let issued = authority.certify(&subject, &key, SystemTime::now(), HOUR).unwrap();
    let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();

    let mut store = RootCertStore::empty();
    for root in certificates(roots.as_bytes()).unwrap() {
        store.add(root.into()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider);
    let (leaf, above) = chain.split_first().unwrap();
    verifier.build().unwrap().verify_client_cert(leaf, above, UnixTime::now()).unwrap();
    chain.len()
}

#[test]
fn a_root_of_our_own_issues() {
    let (certificate, key) = Material::generate("cluster.local", SystemTime::now()).unwrap();
    let now = SystemTime::now();
    for ca in [None, Some(certificate.as_bytes())] {
        let material = Material::read(certificate.as_bytes(), key.as_bytes(), ca, now).unwrap();
        let material = material.of_trust_domain("cluster.local").unwrap();
        assert_eq!(issues(material, &certificate), 1);
    }
    let material = Material::read(certificate.as_bytes(), key.as_bytes(), None, now).unwrap();
    let error = material.of_trust_domain("other.test").unwrap_err();
    assert!(error.contains("--trust-domain cluster.local"), "{error}");
}

#[test]
fn intermediates_of_cert_manager_issue_below_their_root() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256] {
        let root = Level::below(None, "root", algorithm);
        let middle = Level::below(Some(&root), "middle", algorithm);
        let last = Level::below(Some(&middle), "last", algorithm);
        // cert-manager: tls.crt is the chain without the root, ca.crt the root.
        let chain = format!("{}{}", last.pem, middle.pem);
        assert_eq!(issues(read(&chain, &last.key, Some(&root.pem)).unwrap(), &root.pem), 3);
        // With the root in the chain, and no ca.crt.
        let chain = format!("{}{}{}", last.pem, middle.pem, root.pem);
        assert_eq!(issues(read(&chain, &last.key, None).unwrap(), &root.pem), 3);
        // A bundle of old and new roots.
        let old = Level::below(None, "old", algorithm);
        let bundle = format!("{}{}", old.pem, root.pem);
        let material = read(&chain, &last.key, Some(&bundle)).unwrap();
        assert_eq!(material.roots.len(), 2);
        assert_eq!(material.root, certificates(root.pem.as_bytes()).unwrap()[0]);
        assert_eq!(issues(material, &bundle), 3);
    }
}

#[test]
fn what_cannot_issue_is_refused_by_field() {
    let root = Level::below(None, "root", &PKCS_ECDSA_P256_SHA256);
    let middle = Level::below(Some(&root), "middle", &PKCS_ECDSA_P256_SHA256);
    let last = Level::below(Some(&middle), "last", &PKCS_ECDSA_P256_SHA256);
    let refused = |crt: &str, key: &KeyPair, ca: Option<&str>| read(crt, key, ca).unwrap_err();

    let error = refused(&last.pem, &last.key, Some(&root.pem));
    assert!(error.contains("put the missing intermediates into tls.crt"), "{error}");
    let error = refused(&last.pem, &last.key, None);
    assert!(error.starts_with("ca.crt: is not there"), "{error}");
    let error = refused(&root.pem, &last.key, None);
    assert!(error.contains("is not that of the key in tls.key"), "{error}");
    assert!(refused("", &root.key, None).starts_with("tls.crt: no certificate"));
    assert!(refused(&root.pem, &root.key, Some("x")).starts_with("ca.crt: no certificate"));
    let error = Material::read(root.pem.as_bytes(), b"x", None, SystemTime::now()).unwrap_err();
    assert!(error.starts_with("tls.key: no private key"), "{error}");

    let leaf_key = new_key("leaf").unwrap();
    let issuer = Issuer::from_params(&root.params, &root.key);
    let leaf = CertificateParams::default().signed_by(&leaf_key, &issuer).unwrap().pem();
    let error = refused(&leaf, &leaf_key, Some(&root.pem));
    assert!(error.contains("isCA: true"), "{error}");

    let (old, key) = Material::generate("cluster.local", SystemTime::UNIX_EPOCH + HOUR).unwrap();
    let error =
        Material::read(old.as_bytes(), key.as_bytes(), None, SystemTime::now()).unwrap_err();
    assert!(error.contains("is valid only from 1970"), "{error}");
}

#[test]
fn no_certificate_outlives_its_authority() {
    let now = SystemTime::now();
    let (certificate, key) = Material::generate("cluster.local", now).unwrap();
    let material = Material::read(certificate.as_bytes(), key.as_bytes(), None, now).unwrap();
    let ends = material.not_after;
    let authority = Authority::new(material, HOUR).unwrap();
    let identity = SpiffeId::new("cluster.local", "shop", "web");
    let issued = authority.issue(&identity, ends - HOUR / 2).unwrap();
    assert_eq!(issued.not_after, ends);
    assert!(authority.issue(&identity, ends).is_err());
}
