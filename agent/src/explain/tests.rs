use weft_proto::v1::{ExplainRequest, ExplainResponse};

use super::{ExplainError, explain};
use crate::flows::test_support::{mesh, pod, service};

const ALLOW_WEB: &str = "---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: api
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: web
    ports:
    - port: 8080
";

fn shop() -> String {
    pod("web", "n1", &["10.0.0.1"])
        + &pod("api", "n1", &["10.0.0.2"])
        + &pod("db", "n2", &["10.0.1.1"])
        + &service("api", "10.96.0.1")
        + ALLOW_WEB
}

fn ask(from: &str, to: &str, port: u32) -> Result<ExplainResponse, ExplainError> {
    let request = ExplainRequest { from: from.into(), to: to.into(), port, protocol: "tcp".into() };
    explain(&mesh(&shop()), false, &request)
}

#[test]
fn the_line_that_decides_is_named() {
    let lines = shop().lines().count();
    let allowed = ask("shop/web", "shop/api", 8080).unwrap();
    assert_eq!((&*allowed.verdict, &*allowed.path), ("allowed", "direct"));
    let rule = allowed.rule.unwrap();
    assert_eq!((&*rule.field, &*rule.file), ("spec.ingress[0]", "mesh.yaml"));
    assert_eq!(rule.line as usize, lines - 5);

    let denied = ask("db", "api", 8080).unwrap();
    assert_eq!((&*denied.verdict, &*denied.path), ("denied", "tunnel"));
    assert_eq!(denied.reason, "no rule allows it");
    let layers: Vec<&str> = denied.steps.iter().map(|step| &*step.direction).collect();
    assert_eq!(layers, ["egress", "ingress", "mtls", "authorization"]);
    assert_eq!(ask("web", "api", 9090).unwrap().verdict, "denied");
    assert_eq!(ask("web", "192.0.2.1", 443).unwrap().path, "untouched");
}

#[test]
fn a_service_is_asked_for_by_name_or_address() {
    for to in ["service:shop/api", "service:api", "10.96.0.1"] {
        let allowed = ask("web", to, 80).unwrap();
        assert_eq!(allowed.verdict, "allowed", "{to}");
        assert_eq!(allowed.steps[1].subject, "pod shop/api");
    }
    let error = ask("web", "service:api", 81).unwrap_err();
    assert_eq!(error.to_string(), "port: service shop/api has no port 81/tcp; it has 80/tcp");
}

/// Endpoints on two nodes, of which policy lets in the first alone.
const EVERYWHERE: &str = "---
apiVersion: v1
kind: Service
metadata: {name: everywhere, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  externalIPs: [203.0.113.7]
  POLICY
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: everywhere-1, namespace: shop, labels: {kubernetes.io/service-name: everywhere}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.0.0.2], nodeName: n1}
- {addresses: [10.0.1.1], nodeName: n2}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.9}]}
";

#[test]
fn a_service_sends_its_clients_where_the_kernel_does() {
    let ask = |policy: &str, from: &str, to: &str, port: u32| {
        let mesh = mesh(&(shop() + &EVERYWHERE.replace("POLICY", policy)));
        let request =
            ExplainRequest { from: from.into(), to: to.into(), port, protocol: "tcp".into() };
        explain(&mesh, false, &request)
    };
    let ways =
        [("service:everywhere", 80), ("10.96.0.2", 80), ("203.0.113.7", 80), ("192.0.2.9", 30080)];
    for (to, port) in ways {
        assert_eq!(ask("", "web", to, port).unwrap().verdict, "mixed", "{to}");
    }
    let local = "internalTrafficPolicy: Local";
    for (to, port) in &ways[..2] {
        let told = ask(local, "web", to, *port).unwrap();
        assert_eq!((&*told.verdict, &*told.steps[1].subject), ("allowed", "pod shop/api"), "{to}");
        let told = ask(local, "db", to, *port).unwrap();
        assert_eq!(told.steps.len(), 0, "a pod reaches itself: {told:?}");
    }
    let alone =
        shop() + &EVERYWHERE.replace("POLICY", local).replace("nodeName: n1", "nodeName: n3");
    let request = ExplainRequest {
        from: "web".into(),
        to: "everywhere".into(),
        port: 80,
        protocol: "tcp".into(),
    };
    assert_eq!(
        explain(&mesh(&alone), false, &request).unwrap_err().to_string(),
        "service shop/everywhere has no endpoint for this port and this client: connections to it \
         fail"
    );
}

#[test]
fn same_node_mtls_takes_the_tunnel() {
    let request = ExplainRequest {
        from: "web".into(),
        to: "api".into(),
        port: 8080,
        protocol: String::new(),
    };
    assert_eq!(explain(&mesh(&shop()), true, &request).unwrap().path, "tunnel");
}

#[test]
fn what_there_is_not_is_said_with_its_field() {
    let says = |error: ExplainError| error.to_string();
    assert_eq!(
        says(ask("nobody", "api", 80).unwrap_err()),
        "from: there is no pod \"nobody\" in the mesh, and it is no address"
    );
    assert_eq!(
        says(ask("web", "nobody", 80).unwrap_err()),
        "to: there is no pod or service \"nobody\" in the mesh, and it is no address"
    );
    assert_eq!(
        says(ask("web", "api", 70000).unwrap_err()),
        "port: 70000 is not between 1 and 65535"
    );
    let twice = shop() + &pod("api", "n1", &["10.0.0.9"]).replace("shop", "other");
    let request =
        ExplainRequest { from: "web".into(), to: "api".into(), port: 1, ..Default::default() };
    assert_eq!(
        says(explain(&mesh(&twice), false, &request).unwrap_err()),
        "to: \"api\" is ambiguous, say which: other/api, shop/api"
    );
}
