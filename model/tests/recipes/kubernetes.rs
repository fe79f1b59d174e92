//! networking.k8s.io/v1 NetworkPolicy: the API's reference, and the recipes of
//! ahmetb/kubernetes-network-policy-recipes.

use crate::town::{Ask, check};

#[test]
fn without_policy_everything_is_open() {
    check(
        "",
        &[
            (Ask("shop/web", "shop/db", "tcp/5432"), "Unrestricted"),
            (Ask("8.8.8.8", "shop/db", "udp/53"), "Unrestricted"),
            (Ask("old/legacy", "shop/db", "icmp"), "Unrestricted"),
        ],
    );
}

#[test]
fn deny_all_traffic_to_an_application() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db-deny-all}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: []
",
        &[
            (Ask("shop/web", "shop/db", "tcp/5432"), "NoRule NetworkPolicy shop/db-deny-all spec"),
            (Ask("shop/web", "shop/db", "icmp"), "NoRule NetworkPolicy shop/db-deny-all spec"),
            (Ask("shop/web", "shop/web", "tcp/80"), "Unrestricted"),
            // A pod always reaches itself, its node (a kubelet's probe) always reaches it.
            (Ask("shop/db", "shop/db", "tcp/5432"), "Unrestricted"),
            (Ask("192.168.0.1", "shop/db", "tcp/5432"), "OwnNode"),
            (
                Ask("192.168.0.2", "shop/db", "tcp/5432"),
                "NoRule NetworkPolicy shop/db-deny-all spec",
            ),
            // The policy isolates one direction.
            (Ask("shop/db", "shop/web", "tcp/80"), "Unrestricted"),
        ],
    );
}

#[test]
fn limit_traffic_to_an_application() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db-allow}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/1"),
                "Rule NetworkPolicy shop/db-allow spec.ingress[0]",
            ),
            (
                Ask("shop/web", "shop/db", "icmp"),
                "Rule NetworkPolicy shop/db-allow spec.ingress[0]",
            ),
            // A podSelector alone means the policy's own namespace.
            (Ask("bank/web", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/db-allow spec"),
            (Ask("shop/api", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/db-allow spec"),
        ],
    );
}

#[test]
fn deny_from_other_namespaces() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: own-only}
spec:
  podSelector: {}
  ingress:
  - from: [{podSelector: {}}]
",
        &[
            (
                Ask("shop/api", "shop/db", "tcp/1"),
                "Rule NetworkPolicy shop/own-only spec.ingress[0]",
            ),
            (Ask("bank/web", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/own-only spec"),
            (Ask("9.9.9.9", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/own-only spec"),
            (Ask("shop/api", "bank/web", "tcp/1"), "Unrestricted"),
        ],
    );
}

#[test]
fn some_pods_in_other_namespaces() {
    // One item with both selectors means both; two items mean either.
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: both}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: money}}
      podSelector: {matchLabels: {app: web}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: either}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {team: money}}
    - podSelector: {matchLabels: {app: web}}
",
        &[
            (Ask("bank/web", "shop/db", "tcp/1"), "Rule NetworkPolicy shop/both spec.ingress[0]"),
            (Ask("bank/teller", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/both spec"),
            (Ask("shop/web", "shop/db", "tcp/1"), "NoRule NetworkPolicy shop/both spec"),
            (
                Ask("bank/teller", "shop/api", "tcp/1"),
                "Rule NetworkPolicy shop/either spec.ingress[0]",
            ),
            (
                Ask("shop/web", "shop/api", "tcp/1"),
                "Rule NetworkPolicy shop/either spec.ingress[0]",
            ),
            (Ask("shop/db", "shop/api", "tcp/1"), "NoRule NetworkPolicy shop/either spec"),
        ],
    );
}

#[test]
fn ports_by_number_name_and_range() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: ports}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - ports: [{port: main}, {protocol: UDP, port: dns}, {port: 6000, endPort: 6010}]
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{protocol: SCTP}]
",
        &[
            (
                Ask("9.9.9.9", "shop/db", "tcp/8080"),
                "Rule NetworkPolicy shop/ports spec.ingress[0]",
            ),
            (Ask("9.9.9.9", "shop/db", "udp/8080"), "NoRule NetworkPolicy shop/ports spec"),
            (
                Ask("9.9.9.9", "shop/db", "udp/5353"),
                "Rule NetworkPolicy shop/ports spec.ingress[0]",
            ),
            (Ask("9.9.9.9", "shop/db", "tcp/5999"), "NoRule NetworkPolicy shop/ports spec"),
            (
                Ask("9.9.9.9", "shop/db", "tcp/6000"),
                "Rule NetworkPolicy shop/ports spec.ingress[0]",
            ),
            (
                Ask("9.9.9.9", "shop/db", "tcp/6010"),
                "Rule NetworkPolicy shop/ports spec.ingress[0]",
            ),
            (Ask("9.9.9.9", "shop/db", "tcp/6011"), "NoRule NetworkPolicy shop/ports spec"),
            (Ask("shop/web", "shop/db", "sctp/7"), "Rule NetworkPolicy shop/ports spec.ingress[1]"),
            // No rule that names ports covers ICMP.
            (Ask("shop/web", "shop/db", "icmp"), "NoRule NetworkPolicy shop/ports spec"),
        ],
    );
}

#[test]
fn blocks_and_what_is_left_out_of_them() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: blocks}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 10.0.0.0/16, except: [10.0.2.0/24]}
    - ipBlock: {cidr: 10.0.2.2/32}
",
        &[
            // An ipBlock means pods as well, by their address.
            (Ask("shop/web", "shop/db", "tcp/1"), "Rule NetworkPolicy shop/blocks spec.egress[0]"),
            (Ask("shop/web", "shop/api", "tcp/1"), "NoRule NetworkPolicy shop/blocks spec"),
            (
                Ask("shop/web", "bank/teller", "tcp/1"),
                "Rule NetworkPolicy shop/blocks spec.egress[0]",
            ),
            (
                Ask("shop/web", "10.0.77.7", "tcp/1"),
                "Rule NetworkPolicy shop/blocks spec.egress[0]",
            ),
            (Ask("shop/web", "10.1.0.1", "tcp/1"), "NoRule NetworkPolicy shop/blocks spec"),
            // Its own node a pod always reaches, another not.
            (Ask("shop/web", "192.168.0.1", "tcp/1"), "OwnNode"),
            (Ask("shop/web", "192.168.0.2", "tcp/1"), "NoRule NetworkPolicy shop/blocks spec"),
            (Ask("shop/db", "shop/web", "tcp/1"), "Unrestricted"),
        ],
    );
}

#[test]
fn policies_add_up() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: a-default-deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: db-from-web}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5432}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: web-to-db}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: main}, {port: 5432}]}]
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/5432"),
                "Rule NetworkPolicy shop/db-from-web spec.ingress[0]",
            ),
            // A named port of an egress rule is the peer's; ingress does not allow it.
            (
                Ask("shop/web", "shop/db", "tcp/8080"),
                "NoRule NetworkPolicy shop/a-default-deny spec",
            ),
            (
                Ask("shop/api", "shop/db", "tcp/5432"),
                "NoRule NetworkPolicy shop/a-default-deny spec",
            ),
            (Ask("shop/db", "9.9.9.9", "tcp/443"), "NoRule NetworkPolicy shop/a-default-deny spec"),
        ],
    );
}

#[test]
fn pods_outside_the_mesh_are_the_cni_s() {
    check(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: old, name: deny}
spec: {podSelector: {}}
",
        &[(Ask("shop/web", "old/legacy", "tcp/1"), "Unrestricted")],
    );
}
