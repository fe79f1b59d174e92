use crate::dialect::tests::{check, clean, findings, only};
use crate::mesh::*;

fn manifest(kind: &str, spec: &str) -> String {
    let namespace = if kind == "CiliumNetworkPolicy" { ", namespace: shop" } else { "" };
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {{name: p{namespace}}}\nspec:\n  \
         endpointSelector: {{}}\n  {spec}\n"
    )
}

fn policy_of(resources: Vec<Resource>) -> Policy {
    match <[Resource; 1]>::try_from(resources) {
        Ok([Resource::Policy(policy)]) => (*policy).clone(),
        other => panic!("{other:?}"),
    }
}

/// The policy of a manifest in which nothing is found.
fn policy(spec: &str) -> Policy {
    policy_of(clean(&manifest("CiliumNetworkPolicy", spec)))
}

/// The policy of a manifest in which something is found, but no error.
fn warned(spec: &str) -> Policy {
    let document = only(&manifest("CiliumNetworkPolicy", spec));
    assert!(document.is_in_force() && !document.findings.is_empty(), "{document:?}");
    policy_of(document.resources)
}

fn pods(namespace: &[(&str, &str)], pod: &[(&str, &str)], account: &[&str]) -> Peer {
    let selector = |labels: &[(&str, &str)]| Selector {
        requirements: labels
            .iter()
            .flat_map(|(key, value)| Selector::label(key, value).requirements)
            .collect(),
    };
    let account: Vec<_> = account.iter().map(|name| (SERVICE_ACCOUNT_LABEL, *name)).collect();
    Peer::Workloads(Workloads {
        namespace: selector(namespace),
        pod: selector(pod),
        service_account: selector(&account),
    })
}

const SHOP: (&str, &str) = (NAMESPACE_NAME_LABEL, "shop");

#[test]
fn endpoints_are_of_the_own_namespace_unless_they_name_another() {
    let namespaced: &[(&str, Peer)] = &[
        ("{}", pods(&[SHOP], &[], &[])),
        ("{matchLabels: {app: web}}", pods(&[SHOP], &[("app", "web")], &[])),
        ("{matchLabels: {'k8s:app': web}}", pods(&[SHOP], &[("app", "web")], &[])),
        ("{matchLabels: {'any:app': web}}", pods(&[SHOP], &[("app", "web")], &[])),
        (
            "{matchLabels: {'k8s:io.kubernetes.pod.namespace': bank, app: web}}",
            pods(&[(NAMESPACE_NAME_LABEL, "bank")], &[("app", "web")], &[]),
        ),
        (
            "{matchLabels: {io.cilium.k8s.namespace.labels.team: a}}",
            pods(&[("team", "a")], &[], &[]),
        ),
        ("{matchLabels: {io.cilium.k8s.policy.serviceaccount: web}}", pods(&[SHOP], &[], &["web"])),
        ("{matchLabels: {'reserved:host': ''}}", Peer::Entity(Entity::Host)),
        (
            "{matchExpressions: [{key: 'reserved:remote-node', operator: Exists}]}",
            Peer::Entity(Entity::RemoteNode),
        ),
    ];
    for (selector, peer) in namespaced {
        let policy = policy(&format!("ingress: [{{fromEndpoints: [{selector}]}}]"));
        assert_eq!(policy.rules[0].peers.as_deref(), Some(&[peer.clone()][..]), "{selector}");
        assert!(policy.isolates_ingress && !policy.isolates_egress);
    }
    for (selector, peer) in [
        ("{}", pods(&[], &[], &[])),
        ("{matchLabels: {app: web}}", pods(&[], &[("app", "web")], &[])),
    ] {
        let spec = format!("egress: [{{toEndpoints: [{selector}]}}]");
        let policy = policy_of(clean(&manifest("CiliumClusterwideNetworkPolicy", &spec)));
        assert_eq!(policy.rules[0].peers.as_deref(), Some(&[peer][..]), "{selector}");
        assert_eq!(policy.subject, Workloads::default());
    }
}

#[test]
fn what_a_rule_names_decides_whom_it_matches() {
    let port = PortMatch { protocol: Some(Protocol::Tcp), ports: Ports::Range(80, 80) };
    let ports = "toPorts: [{ports: [{port: '80', protocol: TCP}]}]";
    for (rule, peers, ports) in [
        // Default deny and nothing else.
        ("{}".to_owned(), Some(0), None),
        ("{fromEndpoints: []}".to_owned(), Some(0), None),
        ("{fromEndpoints: [{}]}".to_owned(), Some(1), None),
        (format!("{{{ports}}}"), None, Some(vec![port.clone()])),
        (format!("{{fromEndpoints: [], {ports}}}"), Some(0), Some(vec![port.clone()])),
        (format!("{{fromEntities: [all], {ports}}}"), Some(1), Some(vec![port.clone()])),
    ] {
        let policy = policy(&format!("ingress: [{rule}]"));
        let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
        assert_eq!(rule.peers.as_ref().map(Vec::len), peers, "{rule:?}");
        assert_eq!(rule.ports, ports);
        assert_eq!((rule.effect, rule.needs), (Effect::Allow, Needs::L4));
        assert!(policy.isolates_ingress);
    }
}

#[test]
fn directions_are_isolated_where_there_are_rules_unless_told_otherwise() {
    for (spec, ingress, egress) in [
        ("ingress: [{}]", true, false),
        ("egressDeny: [{toEntities: [world]}]", false, true),
        ("ingress: [{}]\negress: [{}]", true, true),
        ("ingress: [{}]\nenableDefaultDeny: {ingress: false}", false, false),
        ("ingress: [{}]\nenableDefaultDeny: {egress: true}", true, true),
    ] {
        let policy = policy(spec);
        assert_eq!((policy.isolates_ingress, policy.isolates_egress), (ingress, egress), "{spec}");
    }
    assert!(!warned("ingress: []\negress: [{}]").isolates_ingress);
}

#[test]
fn ports_say_what_was_written() {
    let port = |protocol, ports| PortMatch { protocol, ports };
    let policy = policy(
        "egress:\n- toPorts:\n  - ports:\n    - {port: '80'}\n    - {port: '1000', endPort: 2000, \
         protocol: UDP}\n    - {port: HTTP, protocol: ANY}\n    - {port: '0', protocol: SCTP}\n    - \
         {port: '0', protocol: ICMP}\n  - ports: [{port: '443', protocol: TCP}]",
    );
    assert_eq!(
        policy.rules[0].ports,
        Some(vec![
            port(None, Ports::Range(80, 80)),
            port(Some(Protocol::Udp), Ports::Range(1000, 2000)),
            port(None, Ports::Named("http".into())),
            port(Some(Protocol::Sctp), Ports::All),
            port(Some(Protocol::Icmp), Ports::All),
            port(Some(Protocol::Tcp), Ports::Range(443, 443)),
        ])
    );
}

#[test]
fn cidrs_entities_and_services_are_peers() {
    let net = |text: &str| text.parse().unwrap();
    let policy = policy(
        "egress:\n- toCIDR: [10.1.2.3/8, 192.0.2.1]\n- toCIDRSet: [{cidr: 10.0.0.0/8, except: \
         [10.0.0.0/16]}]\n- toEntities: [world, kube-apiserver, health]\n- toServices:\n  - \
         k8sService: {serviceName: s, namespace: bank}\n  - k8sServiceSelector: {selector: \
         {matchLabels: {'k8s:app': a}}}",
    );
    let peers: Vec<_> = policy.rules.iter().flat_map(|rule| rule.peers.clone().unwrap()).collect();
    assert_eq!(
        peers,
        [
            Peer::Cidr { cidr: net("10.0.0.0/8"), except: vec![] },
            Peer::Cidr { cidr: net("192.0.2.1/32"), except: vec![] },
            Peer::Cidr { cidr: net("10.0.0.0/8"), except: vec![net("10.0.0.0/16")] },
            Peer::Entity(Entity::World),
            Peer::Entity(Entity::KubeApiserver),
            Peer::Entity(Entity::None),
            Peer::Services {
                namespace: Some("bank".into()),
                name: Some("s".into()),
                labels: Selector::EVERYTHING
            },
            Peer::Services { namespace: None, name: None, labels: Selector::label("app", "a") },
        ]
    );
}

#[test]
fn what_is_not_supported_allows_nothing_and_denies_all_it_may_mean() {
    // (spec, needs, peers, ports)
    for (spec, needs, peers, ports) in [
        ("ingress: [{fromNodes: [{}]}]", Needs::Unsupported, Some(0), None),
        ("egress: [{toFQDNs: [{matchName: a.example}]}]", Needs::Unsupported, Some(0), None),
        ("egress: [{toCIDRSet: [{cidrGroupRef: g}]}]", Needs::Unsupported, Some(0), None),
        (
            "ingress: [{fromEndpoints: [{matchLabels: {'container:a': b}}]}]",
            Needs::Unsupported,
            Some(0),
            None,
        ),
        ("egressDeny: [{toCIDRSet: [{cidrGroupRef: g}]}]", Needs::Unsupported, None, None),
        ("egressDeny: [{toFQDNs: [{matchName: a}]}]", Needs::Unsupported, None, None),
        ("egressDeny: [{toEndpoint: [{}]}]", Needs::Unsupported, None, None),
        ("ingress: [{fromEndpoint: [{}]}]", Needs::Unsupported, Some(0), None),
        ("ingress: [{icmps: [{fields: [{type: 8}]}]}]", Needs::Unsupported, None, Some(1)),
        ("ingressDeny: [{icmps: [{fields: [{type: 8}]}]}]", Needs::Unsupported, None, Some(1)),
        (
            "ingress: [{fromEntities: [all], authentication: {mode: required}}]",
            Needs::Unsupported,
            Some(1),
            None,
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {http: [{}]}}]}]",
            Needs::Http,
            None,
            Some(1),
        ),
        (
            "ingress: [{toPorts: [{ports: [{port: '80'}], rules: {kafka: [{}]}}]}]",
            Needs::Unsupported,
            None,
            Some(1),
        ),
        (
            "egress: [{toPorts: [{ports: [{port: '80'}], serverNames: [a]}]}]",
            Needs::Unsupported,
            None,
            Some(1),
        ),
    ] {
        let policy = warned(spec);
        let [rule] = &policy.rules[..] else { panic!("{spec}: {policy:?}") };
        assert_eq!(rule.needs, needs, "{spec}");
        assert_eq!(rule.peers.as_ref().map(Vec::len), peers, "{spec}");
        assert_eq!(rule.ports.as_ref().map(Vec::len), ports, "{spec}");
    }
}

#[test]
fn ports_with_and_without_http_are_rules_of_their_own() {
    let policy = warned(
        "ingress:\n- toPorts:\n  - ports: [{port: '80'}]\n    rules: {http: [{method: GET}]}\n  - \
         ports: [{port: '443'}]",
    );
    let [http, plain] = &policy.rules[..] else { panic!("{policy:?}") };
    assert_eq!((http.needs, &*http.origin.field), (Needs::Http, "spec.ingress[0].toPorts[0]"));
    assert_eq!((plain.needs, &*plain.origin.field), (Needs::L4, "spec.ingress[0]"));
}

#[test]
fn what_does_not_meet_a_requirement_is_denied() {
    let policy = warned("ingress: [{fromRequires: [{matchLabels: {team: a}}]}]");
    let [denies, allows] = &policy.rules[..] else { panic!("{policy:?}") };
    assert_eq!((denies.effect, denies.needs), (Effect::Deny, Needs::L4));
    let not_in = |key: &str, value: &str| Selector {
        requirements: vec![Requirement {
            key: key.into(),
            operator: Operator::NotIn(vec![value.into()]),
        }],
    };
    assert_eq!(
        denies.peers,
        Some(vec![
            Peer::Workloads(Workloads {
                namespace: not_in(NAMESPACE_NAME_LABEL, "shop"),
                ..Workloads::default()
            }),
            Peer::Workloads(Workloads { pod: not_in("team", "a"), ..Workloads::default() }),
        ])
    );
    assert_eq!((allows.effect, allows.peers.as_deref()), (Effect::Allow, Some(&[][..])));
}

#[test]
fn what_is_wrong_with_a_policy_is_found_with_its_line() {
    let table: &[(&str, &[&str])] = &[
        (
            "ingress:\n- fromEndpoints: [{}]\n  fromCIDR: [10.0.0.0/8]",
            &["error m.yaml:8: spec.ingress[0].fromCIDR: stands beside fromEndpoints; make two \
               rules of it, each with its own '-'"],
        ),
        (
            "ingress:\n- fromEntities: [wrold]",
            &["error m.yaml:7: spec.ingress[0].fromEntities[0]: \"wrold\" is no entity; entities \
               are all, world, world-ipv4, world-ipv6, cluster, host, remote-node, \
               kube-apiserver, unmanaged, health, init, ingress, none"],
        ),
        (
            "egress:\n- toPorts:\n  - ports:\n    - port: 80",
            &["error m.yaml:9: spec.egress[0].toPorts[0].ports[0].port: 80 stands where text is \
               expected; put it in quotes"],
        ),
        (
            "egress:\n- toPorts:\n  - ports:\n    - port: '80000'\n    - {port: '90', endPort: 80}\n    \
             - {protocol: TCP}\n    - {port: '1', protocol: TPC}\n    - {port: http, endPort: 90}",
            &[
                "error m.yaml:9: spec.egress[0].toPorts[0].ports[0].port: \"80000\" is neither a \
                 port (0 for all, to 65535) nor the name of one (at most 15 letters, digits and \
                 '-')",
                "error m.yaml:10: spec.egress[0].toPorts[0].ports[1].endPort: 80 is below port 90; \
                 swap them",
                "error m.yaml:11: spec.egress[0].toPorts[0].ports[2].port: missing; `port: \"0\"` \
                 means all ports",
                "error m.yaml:12: spec.egress[0].toPorts[0].ports[3].protocol: \"TPC\" is none of \
                 TCP, UDP, SCTP, ICMP, ANY",
                "error m.yaml:13: spec.egress[0].toPorts[0].ports[4].endPort: is only allowed \
                 beside a numeric port; remove it",
            ],
        ),
        (
            "egress:\n- toCIDRSet:\n  - cidr: 10.0.0.0/8\n    except:\n    - 11.0.0.0/16",
            &["error m.yaml:10: spec.egress[0].toCIDRSet[0].except[0]: 11.0.0.0/16 is no part of \
               the block it is left out of"],
        ),
        (
            "nodeSelector: {}",
            &["error m.yaml:6: spec.nodeSelector: stands beside endpointSelector; remove one of \
               them"],
        ),
        (
            "ingress: []",
            &[
                "note m.yaml:6: spec.ingress: is empty and isolates nothing; `ingress: [{}]` does",
                "warning m.yaml:4: spec: has no rules and therefore no effect; add ingress or \
                 egress",
            ],
        ),
        (
            "ingress:\n- fromEndpoints:\n    matchLabels: {app: a}",
            &["error m.yaml:7: spec.ingress[0].fromEndpoints: a map stands where a list is \
               expected"],
        ),
    ];
    for (spec, expected) in table {
        let text = manifest("CiliumNetworkPolicy", spec);
        assert_eq!(findings(&text), *expected, "in\n{text}");
    }
    let head =
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\n";
    check(&[
        (head, &["error m.yaml:1: spec: missing; a policy has a spec, or a list of specs"]),
        (
            &format!("{head}spec: {{ingress: [{{}}]}}\n"),
            &["error m.yaml:4: spec.endpointSelector: missing; `endpointSelector: {}` selects \
               every pod of the policy's namespace"],
        ),
        (
            &format!("{head}spec:\n  nodeSelector: {{}}\n  ingress: [{{}}]\n"),
            &["warning m.yaml:5: spec.nodeSelector: host policies are not supported and not \
               enforced: traffic of nodes is not narrowed"],
        ),
    ]);
}

#[test]
fn a_policy_that_cannot_be_read_has_a_fallback_that_denies() {
    let all = Workloads {
        namespace: Selector::label(NAMESPACE_NAME_LABEL, "shop"),
        ..Workloads::default()
    };
    // (spec, denying rules in the fallback, whether its selector is known)
    for (spec, denies) in [
        ("ingress: [{fromEntities: [x]}]", 0),
        ("ingress: [{fromEntities: [x]}]\ningressDeny: []", 1),
        ("ingressDeny: 1\negressDeny: 2", 2),
        ("ingress: [", 2),
    ] {
        let document = only(&manifest("CiliumNetworkPolicy", spec));
        assert!(!document.is_in_force(), "{spec}");
        let policy = policy_of(document.deny_fallback.expect(spec));
        assert_eq!(policy.subject, all, "{spec}");
        assert!(policy.isolates_ingress && policy.isolates_egress, "{spec}");
        assert_eq!(policy.rules.len(), denies, "{spec}");
        assert!(policy.rules.iter().all(|rule| rule.effect == Effect::Deny
            && rule.peers.is_none()
            && rule.ports.is_none()));
    }
}
