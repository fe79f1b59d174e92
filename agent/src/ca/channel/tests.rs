use super::endpoints;
use crate::flows::test_support::{mesh, pod, service};

#[test]
fn a_name_of_the_cluster_leads_to_the_services_endpoints() {
    let mesh = mesh(&format!(
        "{}{}{}",
        pod("ca", "n1", &["10.0.0.1"]),
        pod("other", "n1", &["10.0.0.2"]),
        service("ca", "10.96.0.9"),
    ));
    let found = |host: &str, port| endpoints(&mesh, host, port);
    let expected = vec!["10.0.0.1:8080".parse().unwrap()];
    assert_eq!(found("ca.shop.svc", 80), expected);
    assert_eq!(found("ca.shop.svc.cluster.local", 80), expected);
    for (host, port) in [
        ("ca.shop.svc", 81),
        ("ca.shop", 80),
        ("none.shop.svc", 80),
        ("ca.example.com", 80),
        ("10.96.0.9", 80),
    ] {
        assert!(found(host, port).is_empty(), "{host}:{port}");
    }
}
