//! A small mesh to try policies on, and the question what happens to a connection.

use weft_common::Reason;
use weft_model::compile::{Compiler, Lookup};
use weft_model::dialect::read_yaml;
use weft_model::evaluate::{Connection, Outcome, Party, verdict};
use weft_model::mesh::*;

/// Two nodes; `shop/web` and `shop/db` on the first, the rest on the second; `old/legacy` is not
/// in the mesh.
const TOWN: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: sales, weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: bank, labels: {team: money, weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: old}
---
apiVersion: v1
kind: Node
metadata: {name: one}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: two}
status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
";

/// Namespace, name, node, address.
const PODS: [(&str, &str, &str, &str); 7] = [
    ("shop", "web", "one", "10.0.1.1"),
    ("shop", "db", "one", "10.0.1.2"),
    ("shop", "api", "two", "10.0.2.1"),
    ("bank", "teller", "two", "10.0.2.2"),
    ("bank", "web", "two", "10.0.2.3"),
    ("bank", "vault", "one", "10.0.1.3"),
    ("old", "legacy", "two", "10.0.2.4"),
];

/// The town with these manifests.
pub fn town(manifests: &str) -> Mesh {
    let mut mesh = Mesh::default();
    insert(&mut mesh, TOWN);
    for (namespace, name, node, address) in PODS {
        insert(
            &mut mesh,
            &format!(
                "apiVersion: v1\nkind: Pod\n\
                 metadata: {{namespace: {namespace}, name: {name}, uid: {namespace}-{name}, \
                 labels: {{app: {name}}}}}\n\
                 spec:\n  nodeName: {node}\n  serviceAccountName: {name}\n  containers:\n  \
                 - {{name: c, image: i, ports: [{{name: main, containerPort: 8080}}, \
                 {{name: dns, containerPort: 5353, protocol: UDP}}]}}\n\
                 status: {{podIP: {address}}}\n"
            ),
        );
    }
    insert(&mut mesh, manifests);
    mesh
}

fn insert(mesh: &mut Mesh, text: &str) {
    for document in read_yaml(&mesh.settings.clone(), "m.yaml", text) {
        assert!(document.is_in_force(), "{:?}", document.findings);
        mesh.insert_document(&document);
    }
}

/// `shop/web`, or an address.
pub fn party(text: &str) -> Party {
    match text.split_once('/') {
        Some((namespace, name)) => {
            Party::Pod(Name { namespace: namespace.into(), name: name.into() })
        }
        None => Party::Address(text.parse().unwrap()),
    }
}

fn address(mesh: &Mesh, party: &Party) -> std::net::IpAddr {
    match party {
        Party::Address(address) => *address,
        Party::Pod(name) => mesh.pods[name].addresses[0],
    }
}

/// One question: from, to, `tcp/80`; `proven tcp/80` where the identity is proven.
pub struct Ask<'a>(pub &'a str, pub &'a str, pub &'a str);

/// What happens, as `NoRule NetworkPolicy shop/default-deny spec`. The tables must say the same.
pub fn happens(mesh: &Mesh, Ask(from, to, how): &Ask<'_>) -> String {
    let (proven, how) = match how.strip_prefix("proven ") {
        Some(how) => (true, how),
        None => (false, *how),
    };
    let (protocol, port) = how.split_once('/').unwrap_or((how, "0"));
    let connection = Connection {
        source: party(from),
        destination: party(to),
        protocol: match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => Protocol::Icmp,
        },
        port: port.parse().unwrap(),
        proven,
    };
    let verdict = verdict(mesh, &connection);
    let all = say(&verdict.outcome);
    let (source, destination) =
        (address(mesh, &connection.source), address(mesh, &connection.destination));
    let mut decided = None;
    for (side, end) in [("egress", source), ("ingress", destination)] {
        let Some(pod) = mesh.pod_at(end) else { continue };
        let tables = Compiler::starting_at(1).compile(mesh, &pod.node);
        let id = tables.pods[&pod.name].id;
        let found = Lookup::of(&tables).connection(
            if side == "egress" { id } else { 0 },
            source.into(),
            destination.into(),
            connection.protocol.number(),
            connection.port,
            proven,
        );
        let found = if side == "egress" { found.egress } else { found.ingress };
        let Some(found) = found else { continue };
        let text = format!(
            "{} {}",
            found.reason,
            tables.rules.get(&found.rule).map(Origin::to_string).unwrap_or_default()
        );
        let stands = decided.as_ref().is_some_and(|(_, allows): &(String, bool)| !allows);
        if !stands {
            decided = Some((text, found.allows()));
        }
    }
    let origin = verdict.outcome.origin.as_ref().map(Origin::to_string).unwrap_or_default();
    let expected = format!("{} {origin}", verdict.outcome.reason as u32);
    let found = decided.map_or(format!("{} ", Reason::Unrestricted as u32), |(text, _)| text);
    assert_eq!(found, expected, "tables of {from} -> {to} {how}");
    all
}

fn say(outcome: &Outcome) -> String {
    match &outcome.origin {
        Some(origin) => format!("{:?} {} {}", outcome.reason, origin.object, origin.field),
        None => format!("{:?}", outcome.reason),
    }
}

/// Each question with its answer.
pub fn check(manifests: &str, table: &[(Ask<'_>, &str)]) {
    let mesh = town(manifests);
    let mut wrong = Vec::new();
    for (ask, expected) in table {
        let found = happens(&mesh, ask);
        if found != *expected {
            wrong.push(format!("{} -> {} {}: {found}, expected {expected}", ask.0, ask.1, ask.2));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
