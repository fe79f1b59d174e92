use std::time::{Duration, SystemTime};

use super::Roots;
use crate::ca::{Material, material};

const GRACE: Duration = Duration::from_secs(3600);

fn root() -> Vec<u8> {
    let (certificate, _) = Material::generate("cluster.local", SystemTime::now()).unwrap();
    material::certificates(certificate.as_bytes()).unwrap().remove(0)
}

#[test]
fn a_root_that_is_named_no_more_stays_for_its_grace() {
    let (old, new) = (root(), root());
    let now = SystemTime::now();
    let mut roots = Roots::default();
    roots.name(std::slice::from_ref(&old), now, GRACE);
    roots.name(std::slice::from_ref(&new), now + GRACE, GRACE);
    assert_eq!(roots.len(), 2);
    assert_eq!(material::certificates(roots.pem().as_bytes()).unwrap().len(), 2);
    // From when it went, not from when it came.
    roots.name(std::slice::from_ref(&new), now + 2 * GRACE - Duration::from_secs(2), GRACE);
    assert_eq!(roots.len(), 2);
    roots.name(std::slice::from_ref(&new), now + 2 * GRACE, GRACE);
    assert_eq!(roots.pem(), material::pem_of(&new));

    // Brought back in time, it is as before.
    let mut roots = Roots::default();
    roots.name(std::slice::from_ref(&old), now, GRACE);
    roots.name(std::slice::from_ref(&new), now, GRACE);
    roots.name(&[new, old], now + GRACE / 2, GRACE);
    let all = roots.clone();
    roots.name(&material::certificates(all.pem().as_bytes()).unwrap(), now + 10 * GRACE, GRACE);
    assert_eq!(roots.len(), 2);
}

#[test]
fn a_root_is_trusted_no_longer_than_it_is_valid() {
    let root = root();
    let ends = material::not_after(&root).unwrap();
    let mut roots = Roots::default();
    roots.name(std::slice::from_ref(&root), ends - Duration::from_secs(1), GRACE);
    assert_eq!(roots.len(), 1);
    roots.name(&[root], ends, GRACE);
    assert!(roots.is_empty());
}

#[test]
fn what_is_remembered_is_read_as_it_was() {
    let (first, second) = (root(), root());
    let now = SystemTime::now();
    let mut roots = Roots::default();
    roots.name(std::slice::from_ref(&first), now, GRACE);
    roots.name(std::slice::from_ref(&second), now, GRACE);
    let read = Roots::from_json(roots.to_json().as_bytes()).unwrap();
    assert_eq!(read, roots);

    // Another replica has seen one of them earlier.
    let mut late = Roots::default();
    late.name(std::slice::from_ref(&second), now + GRACE, GRACE);
    late.merge(&read);
    assert_eq!(late.since(&second), read.since(&second));
    assert_eq!(late.len(), 2);
    assert!(Roots::from_json(b"{}").is_err());
    assert!(Roots::from_json(br#"[{"certificate":"x","since":1}]"#).is_err());
}
