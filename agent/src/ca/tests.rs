use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, SystemTime};

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, CaError};
use crate::identity::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);

fn open(directory: &Path) -> Authority {
    Authority::open(directory, "cluster.local", HOUR).unwrap()
}

fn web() -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", "web")
}

#[test]
fn a_workload_certificate_is_an_svid_that_the_root_signs() {
    let directory = tempfile::tempdir().unwrap();
    let authority = open(directory.path());
    let now = SystemTime::now();
    let issued = authority.issue(&web(), now).unwrap();

    let (_, root) = parse_x509_pem(authority.roots_pem().as_bytes()).unwrap();
    let root = root.parse_x509().unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    let uris: Vec<_> = leaf
        .iter_extensions()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(uris, [&GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    assert!(!leaf.is_ca());
    assert_eq!(issued.not_after, now + HOUR);
    assert_eq!(issued.renew_at, now + HOUR / 2);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
}

#[test]
fn the_key_is_only_its_owners_and_an_exposed_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let key = directory.path().join("root.key");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::open(directory.path(), "cluster.local", HOUR).err().unwrap();
    assert!(matches!(error, CaError::KeyExposed { mode: 0o644, .. }), "{error}");
}

#[test]
fn agents_that_share_a_directory_share_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(8);
    let roots: BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    open(directory.path()).roots_pem().to_owned()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(roots.len(), 1);
}

#[test]
fn a_crash_between_key_and_certificate_is_made_good() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let key = fs::read(directory.path().join("root.key")).unwrap();
    fs::remove_file(directory.path().join("root.pem")).unwrap();
    open(directory.path());
    assert_eq!(fs::read(directory.path().join("root.key")).unwrap(), key);
}

#[test]
fn what_is_not_a_root_of_this_trust_domain_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let error = Authority::open(directory.path(), "other.test", HOUR).err().unwrap();
    assert!(matches!(error, CaError::TrustDomain { .. }), "{error}");
    assert!(error.to_string().contains("--trust-domain cluster.local"), "{error}");

    let other = tempfile::tempdir().unwrap();
    open(other.path());
    fs::copy(other.path().join("root.pem"), directory.path().join("root.pem")).unwrap();
    let error = Authority::open(directory.path(), "cluster.local", HOUR).err().unwrap();
    assert!(error.to_string().contains("not the certificate of the key"), "{error}");

    fs::remove_file(directory.path().join("root.key")).unwrap();
    let error = Authority::open(directory.path(), "cluster.local", HOUR).err().unwrap();
    assert!(matches!(error, CaError::KeyMissing { .. }), "{error}");
}
