//! weft.dev/v1alpha1 policies: peers by identity, beside the other dialects.

use crate::town::{Ask, check};

#[test]
fn an_identity_that_is_proven_is_allowed() {
    check(
        "
apiVersion: weft.dev/v1alpha1
kind: MeshPolicy
metadata: {namespace: shop, name: db}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromIdentities: [spiffe://cluster.local/ns/shop/sa/web, '*/ns/bank/sa/teller']
    toPorts: [{ports: [{port: 5432}]}]
",
        &[
            (
                Ask("shop/web", "shop/db", "proven tcp/5432"),
                "Rule MeshPolicy shop/db spec.ingress[0]",
            ),
            (
                Ask("bank/teller", "shop/db", "proven tcp/5432"),
                "Rule MeshPolicy shop/db spec.ingress[0]",
            ),
            (Ask("shop/web", "shop/db", "tcp/5432"), "NoRule MeshPolicy shop/db spec"),
            (Ask("shop/web", "shop/db", "udp/5432"), "NoRule MeshPolicy shop/db spec"),
            (Ask("shop/api", "shop/db", "proven tcp/5432"), "NoRule MeshPolicy shop/db spec"),
            (Ask("192.168.0.1", "shop/db", "tcp/5432"), "OwnNode"),
            (Ask("192.168.0.2", "shop/db", "tcp/5432"), "NoRule MeshPolicy shop/db spec"),
        ],
    );
}

#[test]
fn an_identity_that_is_denied_need_not_be_proven() {
    check(
        "
apiVersion: weft.dev/v1alpha1
kind: ClusterMeshPolicy
metadata: {name: no-bank}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingressDeny: [{fromIdentities: ['cluster.local/ns/bank/*']}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: everything}
spec: {podSelector: {}, ingress: [{}]}
",
        &[
            (
                Ask("bank/teller", "shop/db", "proven tcp/80"),
                "RuleDenies ClusterMeshPolicy no-bank spec.ingressDeny[0]",
            ),
            (
                Ask("bank/teller", "shop/db", "udp/80"),
                "RuleDenies ClusterMeshPolicy no-bank spec.ingressDeny[0]",
            ),
            (
                Ask("shop/web", "shop/db", "tcp/80"),
                "Rule NetworkPolicy shop/everything spec.ingress[0]",
            ),
        ],
    );
}

#[test]
fn what_is_dialled_by_identity_is_in_the_mesh() {
    check(
        "
apiVersion: weft.dev/v1alpha1
kind: MeshPolicy
metadata: {namespace: shop, name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toIdentities: ['*/sa/db', '*/sa/legacy']}]
",
        &[
            (Ask("shop/web", "shop/db", "tcp/80"), "Rule MeshPolicy shop/web spec.egress[0]"),
            (Ask("shop/web", "shop/db", "udp/80"), "NoRule MeshPolicy shop/web spec"),
            (Ask("shop/web", "shop/api", "tcp/80"), "NoRule MeshPolicy shop/web spec"),
            (Ask("shop/web", "old/legacy", "tcp/80"), "NoRule MeshPolicy shop/web spec"),
            (Ask("shop/web", "203.0.113.1", "tcp/80"), "NoRule MeshPolicy shop/web spec"),
        ],
    );
}
