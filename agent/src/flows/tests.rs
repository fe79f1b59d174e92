use std::collections::BTreeMap;
use std::sync::Arc;

use weft_common::{Decision, FLOW_EGRESS, FLOW_PROVEN, FlowEvent, FlowKind, Path, PodId, Reason};
use weft_model::compile::{LocalPod, Tables};
use weft_model::mesh::{Location, Mesh, Name, ObjectRef, Origin};
use weft_proto::v1::FlowsRequest;

use super::test_support::{endpoint, event, mesh, pod, publish, service};
use super::{Enricher, Filter, FlowRing};
use crate::snapshot::Snapshots;

fn origin() -> Origin {
    Origin {
        object: ObjectRef {
            kind: "NetworkPolicy".into(),
            name: Name { namespace: "shop".into(), name: "api".into() },
        },
        field: "spec.ingress[0]".into(),
        location: Some(Location { file: "shop.yaml".into(), line: 12 }),
    }
}

fn tables(mesh: &Mesh, rules: &[u32], pods: &[(&str, PodId)]) -> Tables {
    Tables {
        rules: Arc::new(rules.iter().map(|id| (*id, origin())).collect::<BTreeMap<_, _>>()),
        pods: pods
            .iter()
            .map(|(name, id)| {
                let name = Name { namespace: "shop".into(), name: (*name).into() };
                let uid = mesh.pods[&name].uid.clone();
                (name, LocalPod { id: *id, uid, entry: weft_common::Pod::default() })
            })
            .collect(),
        ..Tables::default()
    }
}

#[test]
fn an_event_gets_the_names_that_held_when_it_happened() {
    let snapshots = Arc::new(Snapshots::default());
    let before = mesh(
        &(pod("web", "n1", &["10.0.0.1", "fd00::1"])
            + &pod("api", "n2", &["10.0.1.1"])
            + &service("api", "10.96.0.1")),
    );
    let with_rule = tables(&before, &[7], &[("web", 3)]);
    publish(&snapshots, 1, &before, with_rule);
    // Both pods go, and another gets the address; the rule goes, too.
    let after = mesh(&pod("other", "n2", &["10.0.1.1"]));
    publish(&snapshots, 2, &after, Tables::default());

    let mut enricher = Enricher::new("n1".into(), snapshots);
    let event = FlowEvent {
        dialled: endpoint("10.96.0.1:80"),
        source_pod: 3,
        decision: Decision::of(7, Reason::Rule),
        path: Path::Tunnel as u8,
        flags: FLOW_EGRESS | FLOW_PROVEN,
        ..event("10.0.0.1:5555", "10.0.1.1:8080")
    };
    let flow = enricher.enrich(&event);
    let (source, destination) = (flow.source.unwrap(), flow.destination.unwrap());
    assert_eq!((&*source.namespace, &*source.pod, source.port), ("shop", "web", 5555));
    assert_eq!(source.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(destination.pod, "api");
    assert_eq!(destination.identity, "spiffe://cluster.local/ns/shop/sa/api");
    assert_eq!((&*flow.service, &*flow.dialled), ("shop/api", "10.96.0.1:80"));
    assert_eq!((&*flow.verdict, &*flow.path, &*flow.direction), ("allowed", "tunnel", "egress"));
    let rule = flow.rule.unwrap();
    assert_eq!(
        (&*rule.kind, &*rule.name, &*rule.file, rule.line),
        ("NetworkPolicy", "api", "shop.yaml", 12)
    );

    let later = FlowEvent { generation: 2, ..event };
    let flow = enricher.enrich(&later);
    assert_eq!(flow.destination.unwrap().pod, "other");
}

#[test]
fn an_identity_that_is_not_proven_is_not_shown() {
    let snapshots = Arc::new(Snapshots::default());
    let mesh = mesh(&pod("web", "n1", &["10.0.0.1"]));
    publish(&snapshots, 1, &mesh, Tables::default());
    let flow = Enricher::new("n1".into(), snapshots).enrich(&event("10.0.0.1:1", "192.0.2.1:2"));
    assert_eq!(flow.source.unwrap().identity, "");
    let destination = flow.destination.unwrap();
    assert_eq!((&*destination.address, &*destination.pod), ("192.0.2.1", ""));
}

#[test]
fn the_ring_keeps_the_last_and_counts_what_a_slow_reader_missed() {
    let ring = FlowRing::new(4);
    let numbered = |number: u64| FlowEvent { time: number, ..event("10.0.0.1:1", "10.0.0.2:2") };
    ring.push(&[numbered(0), numbered(1), numbered(2)]);
    let mut out = Vec::new();
    assert_eq!(ring.read(0, 2, &mut out), (0, 2));
    ring.push(&(3..9).map(numbered).collect::<Vec<_>>());
    assert_eq!(ring.bounds(), (5, 9));
    assert_eq!(ring.read(2, 100, &mut out), (3, 9));
    let times: Vec<u64> = out.iter().map(|event| event.time).collect();
    assert_eq!(times, [0, 1, 5, 6, 7, 8]);
    assert_eq!(ring.read(9, 100, &mut out), (0, 9));
}

#[test]
fn forty_thousand_events_are_kept() {
    const KEPT: usize = 32_768;
    let ring = FlowRing::new(KEPT);
    let batch = vec![event("10.0.0.1:1", "10.0.0.2:2"); 400];
    let started = std::time::Instant::now();
    for _ in 0..100 {
        ring.push(&batch);
    }
    println!("40,000 events took {:?}", started.elapsed());
    assert_eq!(ring.bounds(), (40_000 - KEPT as u64, 40_000));
}

#[test]
fn filters_match_all_that_is_set() {
    let snapshots = Arc::new(Snapshots::default());
    let mesh =
        mesh(&(pod("web-1", "n1", &["10.0.0.1", "fd00::1"]) + &pod("api-1", "n1", &["10.0.0.2"])));
    publish(&snapshots, 1, &mesh, Tables::default());
    let mut enricher = Enricher::new("n1".into(), snapshots);
    let allowed = event("10.0.0.1:1", "10.0.0.2:80");
    let denied = FlowEvent {
        kind: FlowKind::Denied as u8,
        decision: Decision::because(Reason::NoRule),
        path: Path::Untouched as u8,
        ..event("[fd00::1]:1", "[2001:db8::1]:80")
    };
    let mut matches = |request: FlowsRequest| {
        let filter = Filter::new(&request).unwrap();
        [&allowed, &denied].map(|event| {
            let whole = filter.matches(&enricher.enrich(event));
            assert!(!whole || filter.may_match(event), "{request:?}");
            whole
        })
    };
    let all = FlowsRequest::default();
    let from = |from: &str| FlowsRequest { from: from.into(), ..FlowsRequest::default() };
    let to = |to: &str| FlowsRequest { to: to.into(), ..FlowsRequest::default() };
    assert_eq!(matches(all.clone()), [true, true]);
    assert_eq!(matches(from("shop/web-1")), [true, true]);
    assert_eq!(matches(from("web-1")), [true, true]);
    assert_eq!(matches(from("web-*")), [true, true]);
    assert_eq!(matches(from("shop/*")), [true, true]);
    assert_eq!(matches(from("other/web-1")), [false, false]);
    assert_eq!(matches(from("web")), [false, false]);
    assert_eq!(matches(from("fd00:0::1")), [false, true], "as an address, however written");
    assert_eq!(matches(to("10.0.*")), [true, false]);
    assert_eq!(matches(to("2001:db8::1")), [false, true]);
    let namespace = |name: &str| FlowsRequest { namespace: name.into(), ..all.clone() };
    assert_eq!(matches(namespace("shop")), [true, true]);
    assert_eq!(matches(namespace("sho")), [false, false]);
    let verdict = FlowsRequest { verdict: "denied".into(), ..all.clone() };
    assert_eq!(matches(verdict), [false, true]);
    let path = FlowsRequest { path: "direct".into(), ..all.clone() };
    assert_eq!(matches(path), [true, false]);

    let error = Filter::new(&FlowsRequest { verdict: "drop".into(), ..all }).unwrap_err();
    assert_eq!(error.to_string(), "verdict: \"drop\" is none of allowed, denied");
}
