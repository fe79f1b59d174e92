use crate::dialect::tests::{clean, findings, only};
use crate::mesh::*;

fn manifest(kind: &str, namespace: &str, spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: p, namespace: \
         {namespace}}}\nspec:\n  {spec}\n"
    )
}

fn authorization_of(resources: Vec<Resource>) -> AuthorizationPolicy {
    match <[Resource; 1]>::try_from(resources) {
        Ok([Resource::Authorization(policy)]) => (*policy).clone(),
        other => panic!("{other:?}"),
    }
}

fn authorization(namespace: &str, spec: &str) -> AuthorizationPolicy {
    authorization_of(clean(&manifest("AuthorizationPolicy", namespace, spec)))
}

fn warned(spec: &str) -> AuthorizationPolicy {
    let document = only(&manifest("AuthorizationPolicy", "shop", spec));
    assert!(document.is_in_force() && !document.findings.is_empty(), "{document:?}");
    authorization_of(document.resources)
}

fn peer_authentication(namespace: &str, spec: &str) -> PeerAuthentication {
    match &clean(&manifest("PeerAuthentication", namespace, spec))[..] {
        [Resource::PeerAuthentication(policy)] => (**policy).clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_acts_on_mesh_namespace_workload_or_service() {
    let web = Selector::label("app", "web");
    let select = "selector: {matchLabels: {app: web}}";
    for (namespace, spec, scope) in [
        ("istio-system", "{}", Scope::Mesh),
        ("istio-system", select, Scope::Selected(web.clone())),
        ("shop", "{}", Scope::Namespace("shop".into())),
        ("shop", select, Scope::Workload("shop".into(), web)),
        (
            "shop",
            "targetRefs: [{kind: Service, name: a}, {kind: Service, group: core, name: b}]",
            Scope::Services("shop".into(), vec!["a".into(), "b".into()]),
        ),
        (
            "shop",
            "targetRef: {kind: Service, group: '', name: a}",
            Scope::Services("shop".into(), vec!["a".into()]),
        ),
    ] {
        let policy = authorization(namespace, spec);
        assert_eq!(policy.scope, scope, "{spec}");
        assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0), "{spec}");
    }
    let gateway = warned(
        "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a}]\nrules: [{}]",
    );
    assert_eq!(gateway.scope, Scope::Nothing);
    let absent = "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: \
                  {name: p}\n";
    let policy = authorization_of(clean(absent));
    assert_eq!((policy.action, policy.rules.len()), (Action::Allow, 0));
}

#[test]
fn cluster_local_is_the_meshs_trust_domain_whatever_its_name() {
    let settings = Settings { trust_domain: "my-td".into(), ..Settings::default() };
    let rules = "action: DENY\nrules:\n- from:\n  - source:\n      principals: \
                 [cluster.local/ns/a/sa/b]\n      notPrincipals: ['cluster.local/ns/a/sa/*']\n  \
                 when:\n  - {key: source.principal, values: [cluster.local/ns/a/sa/b, \
                 '*/ns/a/sa/c', cluster.local/ns/*, other/ns/a/sa/b]}";
    let text = manifest("AuthorizationPolicy", "shop", rules);
    let mut documents = crate::dialect::read_yaml(&settings, "m.yaml", &text);
    let document = documents.pop().unwrap();
    let said: Vec<String> = document.findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "m.yaml:12: spec.rules[0].when[0].values[3]: \"other\" is not the mesh's trust domain, so \
          nobody has this identity; write my-td/ns/a/sa/b"
        ]
    );
    let policy = authorization_of(document.resources);
    let rule = &policy.rules[0];
    let exact = |text: &str| StringMatch::Exact(text.into());
    assert_eq!(rule.from[0].principals, [exact("my-td/ns/a/sa/b")]);
    assert_eq!(rule.from[0].not_principals, [StringMatch::Prefix("my-td/ns/a/sa/".into())]);
    let values = vec![
        exact("my-td/ns/a/sa/b"),
        StringMatch::Suffix("/ns/a/sa/c".into()),
        // Istio looks for it in whole identities alone.
        StringMatch::Prefix("cluster.local/ns/".into()),
        exact("other/ns/a/sa/b"),
    ];
    assert_eq!(rule.when, [Condition::SourcePrincipal { values, not_values: Vec::new() }]);
}

#[test]
fn of_two_peer_authentications_of_one_level_the_older_counts() {
    let mut mesh = Mesh::default();
    let mut put = |namespace: &str, name: &str, created: &str, mode: &str| {
        let text = manifest("PeerAuthentication", namespace, &format!("mtls: {{mode: {mode}}}"));
        let created = format!("name: {name}, creationTimestamp: '{created}'");
        assert!(mesh.insert_document(&only(&text.replace("name: p", &created))));
    };
    put("istio-system", "a", "2026-02-01T00:00:00Z", "PERMISSIVE");
    put("istio-system", "b", "2026-01-01T00:00:00Z", "STRICT");
    put("shop", "a", "2026-02-01T00:00:00Z", "DISABLE");
    put("shop", "b", "2026-02-01T00:00:00Z", "STRICT");
    let pods = ["shop", "bank"].map(|namespace| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: {namespace}, uid: \
             {namespace}, labels: {{weft.dev/mesh: enabled}}}}\nspec: {{nodeName: one, containers: \
             []}}\nstatus: {{podIP: 10.0.0.{}}}\n",
            namespace.len()
        );
        let [Resource::Pod(pod)] = &clean(&text)[..] else { panic!("{text}") };
        pod.clone()
    });
    let mode = |pod| crate::evaluate::mtls(&mesh, pod, 80).mode;
    assert_eq!(mode(&pods[0]), MtlsMode::Disable, "the first by name, of two of one age");
    assert_eq!(mode(&pods[1]), MtlsMode::Strict, "the older one");
    let said: Vec<String> = mesh.settle().iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    let not_in_force = "not in force: of the PeerAuthentications of";
    for (said, object, of) in [
        (&said[0], "PeerAuthentication istio-system/a", "the mesh the oldest counts, "),
        (&said[1], "PeerAuthentication shop/b", "the namespace shop the oldest counts, "),
    ] {
        assert!(said.contains(&format!("{object}: spec: {not_in_force} {of}")), "{said}");
    }
}

#[test]
fn rules_say_what_was_written() {
    let policy = authorization(
        "shop",
        "action: DENY\nrules:\n- from:\n  - source:\n      principals: ['*', 'a/*', '*/sa/b', \
         cluster.local/ns/a/sa/b]\n      notPrincipals: [x]\n      namespaces: [bank]\n      notNamespaces: \
         ['b*']\n      ipBlocks: [10.0.0.0/8, 192.0.2.1]\n      notIpBlocks: ['fd00::/8']\n  - \
         source:\n      serviceAccounts: [web, bank/pay]\n      notServiceAccounts: [bank/x]\n  \
         to:\n  - operation:\n      ports: ['80', '443']\n      notPorts: ['81']\n  when:\n  - \
         {key: source.ip, values: [10.0.0.1], notValues: [10.0.0.0/30]}\n  - {key: \
         source.namespace, values: [a]}\n  - {key: source.principal, notValues: ['*']}\n  - {key: \
         source.serviceAccount, values: [bank/pay]}\n  - {key: destination.ip, values: \
         ['fd00::1']}\n  - {key: destination.port, values: ['80']}\n- {}",
    );
    assert_eq!(policy.action, Action::Deny);
    let [rule, all] = &policy.rules[..] else { panic!("{policy:?}") };
    let exact = |text: &str| StringMatch::Exact(text.into());
    let net = |text: &str| text.parse().unwrap();
    assert_eq!(
        rule.from,
        [
            Source {
                principals: vec![
                    StringMatch::Present,
                    StringMatch::Prefix("a/".into()),
                    StringMatch::Suffix("/sa/b".into()),
                    exact("cluster.local/ns/a/sa/b"),
                ],
                not_principals: vec![exact("x")],
                namespaces: vec![exact("bank")],
                not_namespaces: vec![StringMatch::Prefix("b".into())],
                ip_blocks: vec![net("10.0.0.0/8"), net("192.0.2.1/32")],
                not_ip_blocks: vec![net("fd00::/8")],
                ..Source::default()
            },
            Source {
                service_accounts: vec![
                    ("shop".into(), "web".into()),
                    ("bank".into(), "pay".into())
                ],
                not_service_accounts: vec![("bank".into(), "x".into())],
                ..Source::default()
            },
        ]
    );
    assert_eq!(
        rule.to,
        [Operation { ports: vec![80, 443], not_ports: vec![81], needs_http: false }]
    );
    assert_eq!(
        rule.when,
        [
            Condition::SourceIp {
                values: vec![net("10.0.0.1/32")],
                not_values: vec![net("10.0.0.0/30")]
            },
            Condition::SourceNamespace { values: vec![exact("a")], not_values: vec![] },
            Condition::SourcePrincipal { values: vec![], not_values: vec![StringMatch::Present] },
            Condition::SourcePrincipal {
                values: vec![StringMatch::Suffix("/ns/bank/sa/pay".into())],
                not_values: vec![]
            },
            Condition::DestinationIp { values: vec![net("fd00::1/128")], not_values: vec![] },
            Condition::DestinationPort { values: vec![80], not_values: vec![] },
        ]
    );
    assert_eq!(rule.needs, Needs::L4);
    assert_eq!(rule.origin.to_string(), "AuthorizationPolicy shop/p spec.rules[0] (m.yaml:7)");
    assert!(all.from.is_empty() && all.to.is_empty() && all.when.is_empty());
}

#[test]
fn what_needs_more_than_l4_is_kept_and_said() {
    let policy = warned(
        "rules:\n- from: [{source: {requestPrincipals: ['*'], namespaces: [a]}}]\n  to: \
         [{operation: {methods: [GET], ports: ['80']}}]",
    );
    let rule = &policy.rules[0];
    assert!(rule.from[0].needs_http && !rule.from[0].namespaces.is_empty());
    assert!(rule.to[0].needs_http && rule.to[0].ports == [80]);
    assert_eq!(rule.needs, Needs::L4);

    for (key, needs) in [
        ("request.headers[x]", Needs::Http),
        ("request.auth.claims[role]", Needs::Http),
        ("remote.ip", Needs::Http),
        ("connection.sni", Needs::Unsupported),
        ("experimental.envoy.filters.a[b]", Needs::Unsupported),
        ("anything", Needs::Unsupported),
    ] {
        let policy = warned(&format!("rules: [{{when: [{{key: '{key}', values: [a]}}]}}]"));
        assert_eq!(policy.rules[0].needs, needs, "{key}");
        assert!(policy.rules[0].when.is_empty());
    }
    for spec in [
        "rules: [{form: []}]",
        "rules: [{from: [{source: {principal: [a]}}]}, {}]\nselectors: {}",
        "selector: {matchExpressions: []}\nrules: [{}]",
    ] {
        let document = only(&manifest("AuthorizationPolicy", "shop", spec));
        for resource in document.resources {
            let Resource::Authorization(policy) = resource else { panic!() };
            assert_eq!(policy.rules[0].needs, Needs::Unsupported, "{spec}");
        }
    }
}

#[test]
fn what_is_wrong_with_an_authorization_is_found_with_its_line() {
    let table: &[(&str, &[&str])] = &[
        (
            "action: PERMIT",
            &["error m.yaml:5: spec.action: \"PERMIT\" is none of ALLOW, DENY, AUDIT, CUSTOM"],
        ),
        (
            "action: DENY",
            &[
                "warning m.yaml:5: spec.action: without rules the policy matches nothing and has no \
               effect; `rules: [{}]` matches all",
            ],
        ),
        (
            "rules:\n- from: []",
            &["error m.yaml:6: spec.rules[0].from: is empty; remove it to match everything"],
        ),
        (
            "rules:\n- from:\n  - source: {}",
            &["error m.yaml:7: spec.rules[0].from[0].source: is empty; leave `from` out to match \
               every source"],
        ),
        (
            "rules:\n- from:\n  - principals: [a]",
            &[
                "warning m.yaml:7: spec.rules[0].from[0].principals: unknown field; what holds it \
                 allows nothing until the field is corrected or removed",
                "error m.yaml:7: spec.rules[0].from[0].source: missing; an item of `from` has a \
                 source",
            ],
        ),
        (
            "rules:\n- to:\n  - operation: {ports: [http, '0']}",
            &[
                "error m.yaml:7: spec.rules[0].to[0].operation.ports[0]: \"http\" is no port; \
                 write a number",
                "error m.yaml:7: spec.rules[0].to[0].operation.ports[1]: 0 is no port; ports go \
                 from 1 to 65535",
            ],
        ),
        (
            "rules:\n- to:\n  - operation:\n      ports: [80]",
            &["error m.yaml:8: spec.rules[0].to[0].operation.ports[0]: 80 stands where text is \
               expected; put it in quotes"],
        ),
        (
            "rules:\n- to:\n  - operation:\n      ports: '80'",
            &[
                "error m.yaml:8: spec.rules[0].to[0].operation.ports: the text \"80\" stands where a \
               list is expected",
            ],
        ),
        (
            "rules:\n- from:\n  - source: {ipBlocks: [10.0.0]}",
            &["error m.yaml:7: spec.rules[0].from[0].source.ipBlocks[0]: \"10.0.0\" is no CIDR; \
               write it as 10.0.0.0/8 or fd00::/8"],
        ),
        (
            "rules:\n- from:\n  - source: {serviceAccounts: ['*'], namespaces: ['']}",
            &[
                "error m.yaml:7: spec.rules[0].from[0].source.serviceAccounts: stands beside \
                 principals or namespaces; write one or the other",
                "error m.yaml:7: spec.rules[0].from[0].source.namespaces[0]: is empty; `*` matches \
                 whatever is there",
                "error m.yaml:7: spec.rules[0].from[0].source.serviceAccounts[0]: \"*\" is no \
                 service account; write `namespace/name` or `name`, without `*`",
            ],
        ),
        (
            "rules:\n- when:\n  - key: source.ip",
            &[
                "error m.yaml:7: spec.rules[0].when[0]: has neither values nor notValues; add one of \
               them",
            ],
        ),
        (
            "selector: {matchLabels: {app: '*'}}\ntargetRef: {kind: Service, name: a}",
            &["error m.yaml:6: spec.targetRef: stands beside a selector; remove one of them"],
        ),
        (
            "provider: {name: a}",
            &["error m.yaml:5: spec.provider: is only allowed with action CUSTOM; remove it"],
        ),
        (
            "rules:\n  from: []",
            &["error m.yaml:5: spec.rules: a map stands where a list is expected"],
        ),
    ];
    for (spec, expected) in table {
        let text = manifest("AuthorizationPolicy", "shop", spec);
        assert_eq!(findings(&text), *expected, "in\n{text}");
    }
}

#[test]
fn peer_authentications_say_what_was_written() {
    let policy = peer_authentication(
        "shop",
        "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}\nportLevelMtls:\n  80: {mode: \
         DISABLE}\n  '81': {mode: UNSET}",
    );
    assert_eq!(policy.scope, Scope::Workload("shop".into(), Selector::label("app", "web")));
    assert_eq!(policy.mode, Some(MtlsMode::Strict));
    let ports: Vec<_> = policy.ports.iter().map(|(port, (mode, _))| (*port, *mode)).collect();
    assert_eq!(ports, [(80, Some(MtlsMode::Disable)), (81, None)]);
    assert_eq!(
        policy.ports[&80].1.to_string(),
        "PeerAuthentication shop/p spec.portLevelMtls.80 (m.yaml:8)"
    );

    for (namespace, spec, scope, mode) in [
        ("istio-system", "mtls: {mode: STRICT}", Scope::Mesh, Some(MtlsMode::Strict)),
        ("shop", "mtls: {}", Scope::Namespace("shop".into()), None),
        (
            "shop",
            "mtls: {mode: PERMISSIVE}",
            Scope::Namespace("shop".into()),
            Some(MtlsMode::Permissive),
        ),
    ] {
        let policy = peer_authentication(namespace, spec);
        assert_eq!((policy.scope, policy.mode), (scope, mode), "{spec}");
    }

    let table: &[(&str, &[&str])] = &[
        (
            "mtls: {mode: strict}",
            &[
                "error m.yaml:5: spec.mtls.mode: \"strict\" is none of STRICT, PERMISSIVE, DISABLE, \
               UNSET",
            ],
        ),
        (
            "mtls: {mode: STRICT}\nportLevelMtls:\n  80: {mode: DISABLE}",
            &[
                "error m.yaml:6: spec.portLevelMtls: is only allowed beside a selector with labels; \
               add `selector`",
            ],
        ),
        (
            "selector: {matchLabels: {a: b}}\nportLevelMtls:\n  70000: {mode: DISABLE}\n  http: {}",
            &[
                "error m.yaml:7: spec.portLevelMtls.70000: 70000 is no port; ports go from 1 to \
                 65535",
                "error m.yaml:8: spec.portLevelMtls.http: \"http\" is no port; write its number",
            ],
        ),
        (
            "mtls: {mod: STRICT}",
            &["error m.yaml:5: spec.mtls.mod: unknown field; correct or remove it"],
        ),
        (
            "mtls: STRICT",
            &["error m.yaml:5: spec.mtls: the text \"STRICT\" stands where a map is expected"],
        ),
    ];
    for (spec, expected) in table {
        let text = manifest("PeerAuthentication", "shop", spec);
        assert_eq!(findings(&text), *expected, "in\n{text}");
        let fallback = only(&text).deny_fallback.expect(spec);
        assert!(matches!(&fallback[..], [Resource::PeerAuthentication(policy)]
            if policy.mode == Some(MtlsMode::Strict) && policy.ports.is_empty()));
    }
}

#[test]
fn an_authorization_that_cannot_be_read_has_a_fallback_that_denies() {
    let shop = Scope::Namespace("shop".into());
    let web = Scope::Workload("shop".into(), Selector::label("app", "web"));
    let select = "selector: {matchLabels: {app: web}}";
    for (spec, scope, action) in [
        (format!("{select}\nrules: [1]"), &web, Action::Allow),
        (format!("{select}\naction: ALLOW\nrules: ["), &web, Action::Allow),
        (format!("{select}\nrules: ["), &web, Action::Deny),
        (format!("{select}\naction: DENY\nrules: [1]"), &web, Action::Deny),
        (format!("{select}\naction: ALOW"), &web, Action::Deny),
        ("selector: {matchLabels: 1}".to_owned(), &shop, Action::Allow),
        ("selector: [".to_owned(), &shop, Action::Deny),
    ] {
        let document = only(&manifest("AuthorizationPolicy", "shop", &spec));
        assert!(!document.is_in_force(), "{spec}");
        let policy = authorization_of(document.deny_fallback.expect(&spec));
        assert_eq!((&policy.scope, policy.action), (scope, action), "{spec}");
        assert_eq!(policy.rules.len(), usize::from(action == Action::Deny), "{spec}");
    }
}
