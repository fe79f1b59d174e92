//! Manifests with random damage: reading them never panics, and never makes more of them than
//! they say.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use crate::dialect::{Document, read_object, read_yaml};
use crate::mesh::Settings;

const NETWORK_POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: orders
  namespace: shop
spec:
  podSelector:
    matchExpressions:
    - {key: app, operator: In, values: [a, b]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {app: web}}
      namespaceSelector: {}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports:
    - {protocol: TCP, port: 8000, endPort: 8099}
  egress:
  - to: [{podSelector: &all {}}, {namespaceSelector: *all}]
    ports: [{port: http}]
";

const CILIUM: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
specs:
- endpointSelector: {matchLabels: {app: api}}
  enableDefaultDeny: {egress: false}
  ingress:
  - fromEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': bank, app: x}}]
    toPorts:
    - ports: [{port: \"80\", endPort: 90, protocol: TCP}]
      rules: {http: [{method: GET}]}
  - fromRequires: [{matchExpressions: [{key: a, operator: Exists}]}]
  ingressDeny: [{fromEntities: [world]}]
  egress:
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.2.0.0/16]}]
  - toServices: [{k8sService: {serviceName: s}}]
    icmps: [{fields: [{type: 8}]}]
";

const AUTHORIZATION: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: orders
  annotations: {istio.io/dry-run: 'false'}
spec:
  selector: {matchLabels: {app: orders}}
  action: DENY
  rules:
  - from:
    - source: {principals: ['*/sa/a'], notNamespaces: [b], ipBlocks: [10.0.0.1]}
    to:
    - operation: {ports: ['80'], methods: [GET]}
    when:
    - {key: source.ip, values: [10.0.0.0/8]}
";

const PEER_AUTHENTICATION: &str = "apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: strict, namespace: bank}
spec:
  selector:
    matchLabels:
      app: pay
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: DISABLE}
";

const WORKLOADS: &str = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a, uid: u, labels: {weft.dev/mesh: enabled}}
  spec:
    containers: [{name: c, ports: [{name: http, containerPort: 80}], resources: {limits: {cpu: 1}}}]
  status: {podIPs: [{ip: 'fd00::1'}]}
- apiVersion: v1
  kind: Service
  metadata: {name: s}
  spec: {clusterIPs: [10.96.0.1], ports: [{port: 80, targetPort: http}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: s-1, labels: {kubernetes.io/service-name: s}}
  addressType: IPv4
  ports: [{port: 80}]
  endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
- apiVersion: v1
  kind: Node
  metadata: {name: n}
  spec: {podCIDRs: [10.0.0.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

const SEEDS: [&str; 5] = [NETWORK_POLICY, CILIUM, AUTHORIZATION, PEER_AUTHENTICATION, WORKLOADS];

/// Pieces that mean something to YAML or to a reader of it.
const PIECES: [&str; 26] = [
    "\n", " ", "  ", "\t", ":", ": ", "- ", "-", "[", "]", "{", "}", ",", "'", "\"", "#", "&a ",
    "*a", "<<: ", "? ", "|\n", "!!str ", "%", "null", "-1", "é\u{0}",
];

#[derive(Clone, Debug)]
enum Damage {
    Insert(Index, &'static str),
    Remove(Index, usize),
    Repeat(Index),
    Cut(Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), select(&PIECES)).prop_map(|(at, piece)| Damage::Insert(at, piece)),
        4 => (any::<Index>(), 1usize..6).prop_map(|(at, len)| Damage::Remove(at, len)),
        1 => any::<Index>().prop_map(Damage::Repeat),
        1 => any::<Index>().prop_map(Damage::Cut),
    ]
}

fn apply(text: &str, damage: &[Damage]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for damage in damage {
        let at = |index: &Index| index.index(text.len() + 1);
        match damage {
            Damage::Insert(index, piece) => {
                let at = at(index);
                text.splice(at..at, piece.chars());
            }
            Damage::Remove(index, len) => {
                let at = at(index);
                text.drain(at..(at + len).min(text.len()));
            }
            Damage::Repeat(index) => {
                let at = at(index);
                let start = text[..at].iter().rposition(|c| *c == '\n').map_or(0, |at| at + 1);
                let line: Vec<char> = text[start..at].iter().copied().chain(['\n']).collect();
                text.splice(start..start, line);
            }
            Damage::Cut(index) => text.truncate(at(index)),
        }
    }
    text.into_iter().collect()
}

fn check(documents: &[Document], lines: usize) -> Result<(), TestCaseError> {
    for document in documents {
        prop_assert!(document.is_in_force() || document.resources.is_empty());
        prop_assert!(document.deny_fallback.is_none() || !document.is_in_force());
        prop_assert!(!document.resources.is_empty() || !document.findings.is_empty());
        for finding in &document.findings {
            let line = finding.location.as_ref().map_or(1, |location| location.line as usize);
            prop_assert!((1..=lines).contains(&line), "{finding} of {lines} lines");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damaged_text(
        seed in select(&SEEDS),
        damage in proptest::collection::vec(damage(), 1..6),
    ) {
        let text = apply(seed, &damage);
        let whole = "apiVersion: v1\nkind: Namespace\nmetadata: {name: after}\n";
        let text = format!("{text}\n---\n{whole}");
        let documents = read_yaml(&Settings::default(), "m.yaml", &text);
        check(&documents, text.split('\n').count())?;
        let last = documents.last().unwrap();
        prop_assert_eq!(last.resources.len(), 1, "the next document is untouched");
        prop_assert!(last.findings.is_empty());
    }

    #[test]
    fn any_text(text in "(?s).{0,200}") {
        let documents = read_yaml(&Settings::default(), "m.yaml", &text);
        check(&documents, text.split(['\n', '\r']).count() + 1)?;
    }

    #[test]
    fn damaged_values(
        seed in select(&SEEDS[..4]),
        damage in proptest::collection::vec((any::<Index>(), value()), 1..4),
    ) {
        let mut object = super::super::yaml::read(seed).remove(0).value;
        for (index, value) in damage {
            let count = size(&object);
            *nth(&mut object, &mut index.index(count)).unwrap() = value;
        }
        let document = read_object(&Settings::default(), &object);
        check(std::slice::from_ref(&document), 1)?;

        // JSON is YAML.
        let from_text = read_yaml(&Settings::default(), "m.yaml", &object.to_string());
        let resources: usize = from_text.iter().map(|document| document.resources.len()).sum();
        if object.get("items").is_none() {
            prop_assert_eq!(resources, document.resources.len());
        }
    }
}

/// Values that a field may not be ready for.
fn value() -> impl Strategy<Value = Value> {
    select(vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(70000),
        json!(1.5),
        json!(""),
        json!("*"),
        json!("10.0.0.0/8"),
        json!("::/0"),
        json!("reserved:host"),
        json!([]),
        json!([null]),
        json!([{}]),
        json!({}),
        json!({"a": "b"}),
        json!({"matchLabels": {"a": "b"}}),
        json!({"matchLabels": {"reserved:host": "", "k8s:a": "b"}}),
    ])
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(entries) => entries.values().map(size).sum(),
        _ => 0,
    }
}

/// The value with this number, counted depth first.
fn nth<'a>(value: &'a mut Value, index: &mut usize) -> Option<&'a mut Value> {
    if *index == 0 {
        return Some(value);
    }
    *index -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, index)),
        Value::Object(entries) => entries.values_mut().find_map(|entry| nth(entry, index)),
        _ => None,
    }
}
