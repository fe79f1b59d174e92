//! cilium.io/v2 policies: "Layer 3", "Layer 4" and "Deny Policies" of Cilium's documentation.

use crate::town::{Ask, check};

#[test]
fn a_denial_goes_before_every_allowance() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: no-telnet}
spec:
  endpointSelector: {}
  ingress: [{fromEntities: [all]}]
  ingressDeny: [{toPorts: [{ports: [{port: '23', protocol: TCP}]}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: everything}
spec: {podSelector: {}, ingress: [{}]}
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/23"),
                "RuleDenies CiliumClusterwideNetworkPolicy no-telnet spec.ingressDeny[0]",
            ),
            (
                Ask("shop/web", "shop/db", "tcp/22"),
                "Rule CiliumClusterwideNetworkPolicy no-telnet spec.ingress[0]",
            ),
            (Ask("192.168.0.1", "shop/db", "tcp/23"), "OwnNode"),
        ],
    );
}

#[test]
fn a_denial_without_default_deny_leaves_the_rest_open() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: not-the-bank}
spec:
  endpointSelector: {matchLabels: {app: db}}
  enableDefaultDeny: {ingress: false}
  ingressDeny:
  - fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: bank}}]
",
        &[
            (
                Ask("bank/web", "shop/db", "tcp/1"),
                "RuleDenies CiliumNetworkPolicy shop/not-the-bank spec.ingressDeny[0]",
            ),
            (Ask("shop/web", "shop/db", "tcp/1"), "Unrestricted"),
            (Ask("9.9.9.9", "shop/db", "tcp/1"), "Unrestricted"),
        ],
    );
}

#[test]
fn a_denial_alone_isolates() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: deny}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingressDeny: [{fromEndpoints: [{matchLabels: {app: web}}]}]
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/1"),
                "RuleDenies CiliumNetworkPolicy shop/deny spec.ingressDeny[0]",
            ),
            (Ask("shop/api", "shop/db", "tcp/1"), "NoRule CiliumNetworkPolicy shop/deny spec"),
        ],
    );
}

#[test]
fn a_block_means_neither_pods_nor_nodes() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: blocks}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toCIDR: [10.0.0.0/8, 192.168.0.0/16]
  - toCIDRSet: [{cidr: 203.0.113.0/24, except: [203.0.113.128/25]}]
    toPorts: [{ports: [{port: '443'}]}]
",
        &[
            (Ask("shop/web", "shop/db", "tcp/1"), "NoRule CiliumNetworkPolicy shop/blocks spec"),
            (
                Ask("shop/web", "192.168.0.1", "tcp/1"),
                "NoRule CiliumNetworkPolicy shop/blocks spec",
            ),
            (
                Ask("shop/web", "10.7.7.7", "icmp"),
                "Rule CiliumNetworkPolicy shop/blocks spec.egress[0]",
            ),
            (
                Ask("shop/web", "203.0.113.1", "udp/443"),
                "Rule CiliumNetworkPolicy shop/blocks spec.egress[1]",
            ),
            (
                Ask("shop/web", "203.0.113.200", "tcp/443"),
                "NoRule CiliumNetworkPolicy shop/blocks spec",
            ),
        ],
    );
}

#[test]
fn entities() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: web}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toEntities: [world]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: db}
spec:
  endpointSelector: {matchLabels: {app: db}}
  egress: [{toEntities: [host, remote-node]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: api}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress: [{fromEntities: [cluster]}]
",
        &[
            (
                Ask("shop/web", "9.9.9.9", "tcp/1"),
                "Rule CiliumNetworkPolicy shop/web spec.egress[0]",
            ),
            (Ask("shop/web", "192.168.0.1", "tcp/1"), "NoRule CiliumNetworkPolicy shop/web spec"),
            (Ask("shop/web", "bank/web", "tcp/1"), "NoRule CiliumNetworkPolicy shop/web spec"),
            (
                Ask("shop/db", "192.168.0.1", "tcp/1"),
                "Rule CiliumNetworkPolicy shop/db spec.egress[0]",
            ),
            (
                Ask("shop/db", "192.168.0.2", "tcp/1"),
                "Rule CiliumNetworkPolicy shop/db spec.egress[0]",
            ),
            (
                Ask("bank/web", "shop/api", "tcp/1"),
                "Rule CiliumNetworkPolicy shop/api spec.ingress[0]",
            ),
            (
                Ask("192.168.0.1", "shop/api", "tcp/1"),
                "Rule CiliumNetworkPolicy shop/api spec.ingress[0]",
            ),
            (Ask("192.168.0.2", "shop/api", "tcp/1"), "OwnNode"),
            (Ask("9.9.9.9", "shop/api", "tcp/1"), "NoRule CiliumNetworkPolicy shop/api spec"),
        ],
    );
}

#[test]
fn services_and_their_endpoints() {
    check(
        "
apiVersion: v1
kind: Service
metadata: {namespace: bank, name: counter}
spec:
  clusterIP: 10.96.0.1
  selector: {app: teller}
  ports: [{port: 80, targetPort: main}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: to-counter}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toServices: [{k8sService: {serviceName: counter, namespace: bank}}]
",
        &[
            (
                Ask("shop/web", "bank/teller", "tcp/8080"),
                "Rule CiliumNetworkPolicy shop/to-counter spec.egress[0]",
            ),
            (
                Ask("shop/web", "bank/vault", "tcp/8080"),
                "NoRule CiliumNetworkPolicy shop/to-counter spec",
            ),
        ],
    );
}

#[test]
fn http_rules_allow_nothing_yet() {
    check(
        "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {namespace: shop, name: get-only}
spec:
  endpointSelector: {matchLabels: {app: db}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts:
    - ports: [{port: '80', protocol: TCP}]
      rules: {http: [{method: GET}]}
",
        &[
            (
                Ask("shop/web", "shop/db", "tcp/80"),
                "NeedsHttp CiliumNetworkPolicy shop/get-only spec.ingress[0].toPorts[0]",
            ),
            (Ask("shop/web", "shop/db", "tcp/81"), "NoRule CiliumNetworkPolicy shop/get-only spec"),
        ],
    );
}
