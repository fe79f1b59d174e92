use std::fs;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use weft_model::mesh::Settings;
use weft_proto::v1::{Flow, MapUse, Peer, Rule, StatusResponse};

use super::analyze::Report;
use super::output::{CompactFlows, Paint, flow_json};
use super::{Cli, duration, status};
use crate::source::Tree;

const PLAIN: Paint = Paint(false);

fn peer(namespace: &str, pod: &str, address: &str, port: u32) -> Option<Peer> {
    Some(Peer {
        address: address.into(),
        port,
        namespace: namespace.into(),
        pod: pod.into(),
        identity: String::new(),
    })
}

fn allowed() -> Flow {
    Flow {
        time: 1_700_000_000_123_456_789,
        event: "open".into(),
        verdict: "allowed".into(),
        path: "direct".into(),
        protocol: "tcp".into(),
        source: peer("shop", "web-1", "10.0.0.1", 34567),
        destination: peer("shop", "api-1", "10.0.0.2", 8080),
        dialled: "10.96.0.1:80".into(),
        service: "shop/api".into(),
        reason: "a rule allows it".into(),
        rule: Some(Rule {
            kind: "NetworkPolicy".into(),
            namespace: "shop".into(),
            name: "api".into(),
            field: "spec.ingress[0]".into(),
            file: "shop.yaml".into(),
            line: 12,
        }),
        direction: "egress".into(),
        ..Flow::default()
    }
}

fn denied_v6() -> Flow {
    Flow {
        event: "denied".into(),
        verdict: "denied".into(),
        path: "untouched".into(),
        source: peer("", "", "fd00::1", 5),
        destination: peer("", "node:n1", "192.0.2.1", 10250),
        dialled: String::new(),
        service: String::new(),
        reason: "no rule allows it".into(),
        rule: None,
        ..allowed()
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
    parse("weft agent --node n1 --manifests m --map-size connections=5 --same-node mtls").unwrap();
    parse("weft observe -f --from shop/web --verdict denied -o json").unwrap();
    parse("weft policy explain shop/web service:shop/api 80 --manifests m -o json").unwrap();
    parse("weft --log debug status --wait 10s").unwrap();
    parse("weft analyze -o json").unwrap();
    parse("weft validate manifests").unwrap();
    parse("weft crds --compat").unwrap();
    // In a pod of a cluster, where the API server is found by itself.
    parse("weft agent --node n1").unwrap();
    parse("weft agent --node n1 --kubeconfig k").unwrap();
    for wrong in [
        "weft agent --node n1 --kubeconfig k --manifests m",
        "weft agent --node n1 --manifests m --map-size CONNECTIONS",
        "weft agent --node n1 --manifests m --certificate-life 1y",
        "weft agent --node n1 --manifests m --trust-domain spiffe://cluster.local",
        "weft ca --trust-domain Cluster.local",
        "weft observe --verdict dropped",
        "weft analyze --kubeconfig k manifests",
    ] {
        parse(wrong).unwrap_err();
    }
}

#[test]
fn durations_are_read_with_their_units() {
    assert_eq!(duration::parse("90"), Ok(Duration::from_secs(90)));
    assert_eq!(duration::parse("15m"), Ok(Duration::from_secs(900)));
    assert_eq!(duration::parse("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
    assert!(duration::parse("m").is_err() && duration::parse("99999999999999d").is_err());
}

#[test]
fn compact_lines_align_and_show_names_service_and_rule() {
    let mut flows = CompactFlows::new(PLAIN, false);
    assert_eq!(
        flows.line(&allowed()),
        "22:13:20.123 shop/web-1:34567 -> shop/api-1:8080 via shop/api:80 tcp  open   ALLOWED \
         direct    NetworkPolicy shop/api spec.ingress[0] (shop.yaml:12)"
    );
    assert_eq!(
        flows.line(&denied_v6()),
        "22:13:20.123 [fd00::1]:5      -> node:n1:10250                   tcp  denied DENIED  \
         untouched no rule allows it"
    );
    let closed = Flow {
        event: "close".into(),
        bytes_out: 1234,
        bytes_in: 99,
        duration: 12_300_000,
        rule: None,
        ..allowed()
    };
    assert!(flows.line(&closed).contains("1.2 kB out, 99 B in, 12.3 ms"), "{closed:?}");
}

#[test]
fn colours_come_only_where_they_are_wanted() {
    let coloured = CompactFlows::new(Paint(true), false).line(&denied_v6());
    assert!(coloured.contains("\u{1b}[31mDENIED"), "{coloured}");
    let plain = CompactFlows::new(PLAIN, true).line(&denied_v6());
    assert!(!plain.contains('\u{1b}'), "{plain}");
}

#[test]
fn flows_in_json_have_every_field_and_a_time_that_is_exact() {
    let value = flow_json(&allowed());
    assert_eq!(value["time"], "2023-11-14T22:13:20.123456789Z");
    assert_eq!(value["source"]["pod"], "web-1");
    assert_eq!(value["rule"]["line"], 12);
    assert_eq!(flow_json(&denied_v6())["rule"], serde_json::Value::Null);
}

#[test]
fn status_says_what_is_not_in_force() {
    let mut response = StatusResponse {
        node: "n1".into(),
        generation: 3,
        applied: 1_700_000_000_000_000_000,
        maps: vec![MapUse { name: "POLICY".into(), entries: 5, capacity: 10 }],
        ..StatusResponse::default()
    };
    let text = status::text(&response, PLAIN);
    assert!(text.contains("generation 3, applied 2023-11-14T22:13:20Z"), "{text}");
    assert!(text.contains("POLICY  5        10        50 %"), "{text}");
    assert!(text.ends_with("Everything is in force."), "{text}");
    response.problems.push("a.yaml:3: spec: wrong".into());
    let text = status::text(&response, PLAIN);
    assert!(text.ends_with("Not in force:\n  a.yaml:3: spec: wrong"), "{text}");
    assert_eq!(status::json(&response)["applied"], "2023-11-14T22:13:20Z");
}

#[test]
fn validate_prints_file_line_field_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(
        &file,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: a\n  \
         namespace: shop\nspec:\n  podSelector: {}\n  ingress:\n  - ports:\n    - port: 70000\n\
         ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: b\n  \
         namespace: shop\nspec:\n  rules:\n  - to:\n    - operation:\n        methods: [GET]\n",
    )
    .unwrap();
    let mut tree = Tree::new(vec![directory.path().to_owned()], Settings::default());
    tree.scan().unwrap();
    let report = Report::new(&tree);
    let text = report.text(PLAIN);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let error = format!("{}:10: spec.ingress[0].ports[0].port: ", file.display());
    assert!(lines[0].starts_with(&error) && lines[0].ends_with("[error]"), "{text}");
    assert!(lines[1].contains(":21: spec.rules[0].to[0].operation.methods: "), "{text}");
    assert!(lines[1].contains("HTTP") && lines[1].ends_with("[warning]"), "{text}");
    assert_eq!(lines[2], "2 documents in 1 file: 1 error, 1 warning");

    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["errors"], &json["findings"][0]["line"]), (&1.into(), &10.into()));
    assert_eq!(json["findings"][1]["kind"], "AuthorizationPolicy");
}
