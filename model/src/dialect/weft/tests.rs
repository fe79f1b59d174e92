mod fields;

use std::time::Duration;

use crate::dialect::tests::{clean, only};
use crate::mesh::*;

fn manifest(kind: &str, spec: &str) -> String {
    let namespace = if kind == "MeshPolicy" { ", namespace: shop" } else { "" };
    let name = if kind == "MeshSettings" { "default" } else { "p" };
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\nspec:\
         \n  {spec}\n"
    )
}

fn policy_of(resources: &[Resource]) -> Policy {
    match resources {
        [Resource::Policy(policy)] => (**policy).clone(),
        other => panic!("{other:?}"),
    }
}

fn policy(spec: &str) -> Policy {
    policy_of(&clean(&manifest("MeshPolicy", &format!("endpointSelector: {{}}\n{spec}"))))
}

/// The policy of a manifest in which something is found, but no error.
fn warned(spec: &str) -> Policy {
    let document = only(&manifest("MeshPolicy", &format!("endpointSelector: {{}}\n{spec}")));
    assert!(document.is_in_force() && !document.findings.is_empty(), "{document:?}");
    policy_of(&document.resources)
}

fn settings(spec: &str) -> MeshSettings {
    match &clean(&manifest("MeshSettings", spec))[..] {
        [Resource::Settings(settings)] => (**settings).clone(),
        other => panic!("{other:?}"),
    }
}

/// What is found in a manifest.
fn findings(text: &str) -> String {
    crate::dialect::tests::findings(text).join("\n")
}

const TCP: PortMatch = PortMatch { protocol: Some(Protocol::Tcp), ports: Ports::All };

#[test]
fn peers_are_named_by_identity() {
    for (text, wanted) in [
        ("cluster.local/ns/shop/sa/web", StringMatch::Exact("cluster.local/ns/shop/sa/web".into())),
        ("spiffe://cluster.local/ns/c/sa/d", StringMatch::Exact("cluster.local/ns/c/sa/d".into())),
        ("'*'", StringMatch::Present),
        ("spiffe://cluster.local/ns/shop/*", StringMatch::Prefix("cluster.local/ns/shop/".into())),
        ("'*/sa/web'", StringMatch::Suffix("/sa/web".into())),
    ] {
        for (section, field, direction) in [
            ("ingress", "fromIdentities", Direction::Ingress),
            ("egress", "toIdentities", Direction::Egress),
        ] {
            let policy = policy(&format!("{section}:\n- {field}: [{text}]"));
            let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
            assert_eq!(rule.peers, Some(vec![Peer::Identity(wanted.clone())]), "{text}");
            assert_eq!((rule.direction, rule.needs), (direction, Needs::L4), "{text}");
            assert_eq!(rule.ports, Some(vec![TCP]), "{text}");
        }
    }
    for text in ["web", "spiffe://a/ns/b", "a/ns/B/sa/c", "'a*b*'", "'*a*'", "'**'", "''"] {
        let found = findings(&manifest(
            "MeshPolicy",
            &format!("endpointSelector: {{}}\ningress:\n- fromIdentities: [{text}]"),
        ));
        assert!(found.contains("spec.ingress[0].fromIdentities[0]"), "{text}: {found}");
    }
}

#[test]
fn nobody_has_an_identity_of_another_trust_domain() {
    let text = |identity: &str| {
        let spec = format!("endpointSelector: {{}}\ningressDeny:\n- fromIdentities: [{identity}]");
        findings(&manifest("MeshPolicy", &spec))
    };
    let said = text("spiffe://other/ns/shop/sa/web");
    assert!(said.contains("spec.ingressDeny[0].fromIdentities[0]: \"other\" is not"), "{said}");
    assert!(said.contains("write cluster.local/ns/shop/sa/web"), "{said}");
    assert_eq!(text("'*/ns/shop/sa/web'"), "");
}

#[test]
fn identities_are_proven_over_tcp_alone() {
    let allowed = |ports: &str| {
        let policy = warned(&format!(
            "ingress:\n- fromIdentities: ['*']\n  toPorts: [{{ports: [{ports}]}}]"
        ));
        policy.rules[0].ports.clone().unwrap()
    };
    assert!(allowed("{port: 53, protocol: UDP}").is_empty());
    let eighty = PortMatch { protocol: Some(Protocol::Tcp), ports: Ports::Range(80, 80) };
    assert_eq!(allowed("{port: 80}, {port: 53, protocol: UDP}"), [eighty]);
    // A denying rule denies by the address where nothing is proven.
    let denied = policy(
        "ingressDeny:\n- fromIdentities: ['*']\n  toPorts: [{ports: [{port: 53, protocol: UDP}]}]",
    );
    assert_eq!(denied.rules[0].ports.as_ref().unwrap()[0].protocol, Some(Protocol::Udp));
    assert_eq!(policy("egressDeny: [{toIdentities: ['*']}]").rules[0].ports, None);
}

#[test]
fn ports_are_numbers_or_text() {
    for port in ["80", "'80'"] {
        let policy =
            policy(&format!("ingress:\n- toPorts: [{{ports: [{{port: {port}, endPort: 90}}]}}]"));
        let ports = policy.rules[0].ports.clone().unwrap();
        assert_eq!(ports, [PortMatch { protocol: None, ports: Ports::Range(80, 90) }]);
    }
    let found = findings(&manifest(
        "MeshPolicy",
        "endpointSelector: {}\ningress:\n- toPorts: [{ports: [{port: 1.5}]}]",
    ));
    assert!(found.contains("spec.ingress[0].toPorts[0].ports[0].port"), "{found}");
}

#[test]
fn http_rules_allow_nothing_yet() {
    let policy = warned(
        "ingress:
- fromIdentities: ['*/sa/web']
  toPorts:
  - ports: [{port: 80, protocol: TCP}]
    rules:
      http:
      - methods: [GET]
        paths: [/books/*]
        hosts: [shop.example]
        headers: [{name: x-kind, value: a}]
        jwt: [{issuer: https://issuer, audiences: [shop], claims: {group: [admin]}}]
  - ports: [{port: 81, protocol: TCP}]",
    );
    let needs: Vec<Needs> = policy.rules.iter().map(|rule| rule.needs).collect();
    assert_eq!(needs, [Needs::Http, Needs::L4]);
    assert!(policy.isolates_ingress && !policy.isolates_egress);
}

#[test]
fn fields_of_cilium_alone_are_not_known() {
    for (rule, field) in [
        ("fromRequires: [{}]", "fromRequires"),
        ("toPorts: [{ports: [{port: 80}], serverNames: [a]}]", "toPorts[0].serverNames"),
        ("fromCIDRSet: [{cidrGroupRef: a}]", "fromCIDRSet[0].cidrGroupRef"),
    ] {
        let text = manifest("MeshPolicy", &format!("endpointSelector: {{}}\ningress:\n- {rule}"));
        let document = only(&text);
        let is_named = |finding: &crate::dialect::Finding| {
            finding.field.ends_with(field) && finding.reason.contains("unknown")
        };
        assert!(document.findings.iter().any(is_named), "{rule}: {document:?}");
        let opens = document.resources.iter().any(|resource| {
            matches!(resource, Resource::Policy(policy)
                if policy.rules.iter().any(|rule| rule.needs == Needs::L4))
        });
        assert!(!opens, "{rule}");
    }
}

#[test]
fn a_cluster_policy_acts_everywhere() {
    let resources = clean(&manifest(
        "ClusterMeshPolicy",
        "endpointSelector: {matchLabels: {app: web}}\negress: [{toEntities: [world]}]",
    ));
    let policy = policy_of(&resources);
    assert!(policy.subject.namespace.requirements.is_empty());
    assert_eq!(&*policy.origin.object.kind, "ClusterMeshPolicy");
}

#[test]
fn a_policy_that_is_not_in_force_denies() {
    let document = only(&manifest(
        "MeshPolicy",
        "endpointSelector: {matchLabels: {app: web}}\ningress: [{fromIdentities: [web]}]",
    ));
    let fallback = document.deny_fallback.unwrap();
    let policy = policy_of(&fallback);
    assert!(policy.isolates_ingress && policy.isolates_egress && policy.rules.is_empty());
}

#[test]
fn settings_are_read() {
    let said = settings(
        "mtls: {mode: STRICT}
sameNode: mtls
dialects: {istio: false}
trustDomain: shop.example
certificateLife: 1h30m",
    );
    assert_eq!(said.default_mtls, Some(MtlsMode::Strict));
    assert_eq!(said.same_node_mtls, Some(true));
    assert!(said.cilium && !said.istio);
    assert_eq!(said.trust_domain.as_deref(), Some("shop.example"));
    assert_eq!(said.certificate_life, Some(Duration::from_secs(5400)));
    assert_eq!(settings("{}"), MeshSettings::silent(settings("{}").origin));

    for (spec, field) in [
        ("mtls: {mode: ON}", "spec.mtls.mode"),
        ("sameNode: allow", "spec.sameNode"),
        ("trustDomain: spiffe://a", "spec.trustDomain"),
        ("certificateLife: 1d", "spec.certificateLife"),
        ("certificateLife: 1s", "spec.certificateLife"),
        ("certificateLife: 99999999999999999999h", "spec.certificateLife"),
        ("dialects: {cillium: false}", "spec.dialects.cillium"),
    ] {
        let found = findings(&manifest("MeshSettings", spec));
        assert!(found.contains(field), "{spec}: {found}");
        assert!(!only(&manifest("MeshSettings", spec)).is_in_force(), "{spec}");
    }
    let other = manifest("MeshSettings", "{}").replace("name: default", "name: other");
    assert!(findings(&other).contains("metadata.name"));
}

#[test]
fn settings_that_are_wrong_stay_strict() {
    let strict = |spec: &str| {
        let document = only(&manifest("MeshSettings", spec));
        assert!(!document.is_in_force());
        document.deny_fallback.is_some()
    };
    assert!(strict("mtls: {mode: STRICT}\nsameNode: x"));
    assert!(strict("mtls: {mode: [STRICT]}"));
    assert!(strict("mtls: {mode: STRIKT}"));
    assert!(!strict("mtls: {mode: PERMISSIVE}\nsameNode: x"));
    assert!(!strict("sameNode: x"));
}

#[test]
fn a_mesh_is_settled() {
    let mut mesh = Mesh::default();
    let texts = [
        manifest("MeshSettings", "mtls: {mode: STRICT}\ndialects: {cilium: false, istio: false}"),
        manifest("MeshPolicy", "endpointSelector: {}\ningress: [{}]"),
        manifest("MeshPolicy", "endpointSelector: {}\ningress: [{}]")
            .replace("weft.dev/v1alpha1", "cilium.io/v2")
            .replace("MeshPolicy", "CiliumNetworkPolicy"),
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: \
         shop}\nspec: {mtls: {mode: DISABLE}}\n"
            .to_owned(),
    ];
    for text in texts {
        let document = only(&text);
        assert!(document.findings.is_empty(), "{document:?}");
        assert!(mesh.insert_document(&document));
    }
    let findings = mesh.settle();
    assert_eq!(mesh.settings.default_mtls, MtlsMode::Strict);
    assert_eq!(mesh.policies.len(), 1);
    assert!(mesh.peer_authentication.is_empty());
    assert_eq!(findings.len(), 2, "{findings:?}");
}
