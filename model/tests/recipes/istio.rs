//! Istio's AuthorizationPolicy and PeerAuthentication: their references' examples.

use crate::town::{Ask, check};

#[test]
fn the_empty_spec_denies_all() {
    check(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: allow-nothing}
spec: {}
",
        &[
            (
                Ask("shop/web", "shop/db", "proven tcp/1"),
                "NoRule AuthorizationPolicy shop/allow-nothing spec",
            ),
            // It speaks of TCP, and of its namespace.
            (Ask("shop/web", "shop/db", "udp/1"), "Unrestricted"),
            (Ask("shop/web", "bank/web", "tcp/1"), "Unrestricted"),
            (Ask("192.168.0.1", "shop/db", "tcp/1"), "OwnNode"),
        ],
    );
}

#[test]
fn one_empty_rule_allows_all() {
    check(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: allow-all}
spec: {rules: [{}]}
",
        &[(
            Ask("9.9.9.9", "shop/db", "tcp/1"),
            "Rule AuthorizationPolicy shop/allow-all spec.rules[0]",
        )],
    );
}

#[test]
fn deny_goes_before_allow() {
    check(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: allow}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web, '*/sa/teller']}}]
    to: [{operation: {ports: ['5432']}}]
  - from: [{source: {ipBlocks: [9.9.9.0/24]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: deny}
spec:
  action: DENY
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {namespaces: [bank], notPrincipals: [cluster.local/ns/bank/sa/teller]}}]
  - to: [{operation: {ports: ['23']}}]
",
        &[
            (
                Ask("shop/web", "shop/db", "proven tcp/5432"),
                "Rule AuthorizationPolicy shop/allow spec.rules[0]",
            ),
            // Without proof there is no principal.
            (Ask("shop/web", "shop/db", "tcp/5432"), "NoRule AuthorizationPolicy shop/allow spec"),
            (
                Ask("shop/web", "shop/db", "proven tcp/80"),
                "NoRule AuthorizationPolicy shop/allow spec",
            ),
            (
                Ask("bank/teller", "shop/db", "proven tcp/5432"),
                "Rule AuthorizationPolicy shop/allow spec.rules[0]",
            ),
            (
                Ask("bank/web", "shop/db", "proven tcp/5432"),
                "RuleDenies AuthorizationPolicy shop/deny spec.rules[0]",
            ),
            (Ask("bank/web", "shop/db", "tcp/5432"), "NoRule AuthorizationPolicy shop/allow spec"),
            (
                Ask("9.9.9.9", "shop/db", "tcp/80"),
                "Rule AuthorizationPolicy shop/allow spec.rules[1]",
            ),
            (
                Ask("9.9.9.9", "shop/db", "tcp/23"),
                "RuleDenies AuthorizationPolicy shop/deny spec.rules[1]",
            ),
        ],
    );
}

#[test]
fn the_root_namespace_speaks_for_all() {
    check(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: istio-system, name: no-debug}
spec:
  action: DENY
  rules: [{to: [{operation: {ports: ['9999']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: istio-system, name: vaults}
spec:
  selector: {matchLabels: {app: vault}}
  rules: [{from: [{source: {notNamespaces: [shop]}}]}]
",
        &[
            (
                Ask("shop/web", "bank/web", "tcp/9999"),
                "RuleDenies AuthorizationPolicy istio-system/no-debug spec.rules[0]",
            ),
            (Ask("shop/web", "bank/web", "tcp/80"), "Unrestricted"),
            (
                Ask("shop/web", "bank/vault", "proven tcp/80"),
                "NoRule AuthorizationPolicy istio-system/vaults spec",
            ),
            (
                Ask("bank/web", "bank/vault", "proven tcp/80"),
                "Rule AuthorizationPolicy istio-system/vaults spec.rules[0]",
            ),
        ],
    );
}

#[test]
fn http_fields_deny_what_they_would_inspect() {
    check(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: allow}
spec:
  selector: {matchLabels: {app: db}}
  rules: [{to: [{operation: {methods: [GET], ports: ['80']}}, {operation: {ports: ['81']}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: deny}
spec:
  action: DENY
  selector: {matchLabels: {app: api}}
  rules: [{to: [{operation: {paths: [/admin], ports: ['80']}}]}]
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/80"),
                "NeedsHttp AuthorizationPolicy shop/allow spec.rules[0]",
            ),
            (
                Ask("shop/web", "shop/db", "tcp/81"),
                "Rule AuthorizationPolicy shop/allow spec.rules[0]",
            ),
            (
                Ask("shop/web", "shop/api", "tcp/80"),
                "NeedsHttp AuthorizationPolicy shop/deny spec.rules[0]",
            ),
            (Ask("shop/web", "shop/api", "tcp/81"), "Unrestricted"),
        ],
    );
}

#[test]
fn strict_by_mesh_namespace_workload_and_port() {
    check(
        "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: istio-system, name: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: bank, name: default}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: bank, name: vault}
spec:
  selector: {matchLabels: {app: vault}}
  mtls: {mode: STRICT}
  portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}
",
        &[
            (
                Ask("old/legacy", "shop/db", "tcp/1"),
                "NotProven PeerAuthentication istio-system/default spec",
            ),
            (Ask("shop/web", "shop/db", "proven tcp/1"), "Unrestricted"),
            (Ask("old/legacy", "shop/db", "udp/1"), "Unrestricted"),
            (Ask("192.168.0.1", "shop/db", "tcp/1"), "OwnNode"),
            (Ask("old/legacy", "bank/web", "tcp/1"), "Unrestricted"),
            (
                Ask("old/legacy", "bank/vault", "tcp/1"),
                "NotProven PeerAuthentication bank/vault spec",
            ),
            (Ask("old/legacy", "bank/vault", "tcp/80"), "Unrestricted"),
            (
                Ask("old/legacy", "bank/vault", "tcp/81"),
                "NotProven PeerAuthentication bank/vault spec",
            ),
        ],
    );
}

#[test]
fn l4_policy_comes_before_mtls_before_authorization() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: from-web}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {namespace: shop, name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: port}
spec: {rules: [{to: [{operation: {ports: ['5432']}}]}]}
",
        &[
            (Ask("shop/api", "shop/db", "tcp/5432"), "NoRule NetworkPolicy shop/from-web spec"),
            (
                Ask("shop/web", "shop/db", "tcp/5432"),
                "NotProven PeerAuthentication shop/strict spec",
            ),
            (
                Ask("shop/web", "shop/db", "proven tcp/80"),
                "NoRule AuthorizationPolicy shop/port spec",
            ),
            (
                Ask("shop/web", "shop/db", "proven tcp/5432"),
                "Rule AuthorizationPolicy shop/port spec.rules[0]",
            ),
            (
                Ask("shop/web", "shop/db", "udp/1"),
                "Rule NetworkPolicy shop/from-web spec.ingress[0]",
            ),
        ],
    );
}
