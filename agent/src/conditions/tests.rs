use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use weft_model::dialect::{Finding, Severity};
use weft_model::mesh::{Name, ObjectRef, ObjectVersion};

use super::board::{Due, Notice};
use super::{Board, Change, events, report};
use crate::crd::{ACCEPTED, ENFORCED, ObjectStatus};

fn object(name: &str) -> ObjectRef {
    let name = Name { namespace: "shop".into(), name: name.into() };
    ObjectRef { kind: "MeshPolicy".into(), name }
}

fn version(uid: &str, generation: i64) -> ObjectVersion {
    ObjectVersion { uid: uid.into(), generation }
}

fn change(name: &str, generation: i64) -> Change {
    Change {
        object: object(name),
        api_version: "weft.dev/v1alpha1".into(),
        version: version(name, generation),
        findings: Vec::new(),
        status: Some(ObjectStatus::default()),
    }
}

fn finding(severity: Severity, field: &str) -> Finding {
    Finding {
        severity,
        object: None,
        field: field.into(),
        reason: "is wrong; correct it".to_owned(),
        location: None,
    }
}

/// A board, with a clock of its own.
struct Trial {
    board: Board,
    start: Instant,
    elapsed: Duration,
    streams: HashMap<&'static str, u64>,
}

impl Trial {
    fn new() -> Self {
        let start = Instant::now();
        Self { board: Board::new(start), start, elapsed: Duration::ZERO, streams: HashMap::new() }
    }

    /// A board whose leader has led for long.
    fn settled() -> Self {
        let mut trial = Self::new();
        trial.elapsed = Duration::from_secs(60);
        trial
    }

    fn observe(&mut self, change: Change) {
        self.board.observe(change, self.start + self.elapsed);
    }

    fn node(&mut self, node: &'static str) {
        let stream = self.board.connected(&Arc::from(node));
        self.streams.insert(node, stream);
        assert!(self.board.report(node, stream, true, [], []));
    }

    fn says(&mut self, node: &'static str, uid: &str, generation: i64) {
        let stream = self.streams[node];
        assert!(self.board.report(node, stream, false, [version(uid, generation)], []));
    }

    fn leaves(&mut self, node: &'static str) {
        self.board.disconnected(node, self.streams[node], self.start + self.elapsed);
    }

    fn after(&mut self, time: Duration) -> Due {
        self.elapsed += time;
        self.board.due(self.start + self.elapsed)
    }

    /// What is written after a while, as `status reason message` of both conditions.
    fn writes(&mut self, time: Duration) -> Vec<[String; 2]> {
        let due = self.after(time);
        let now = self.start + self.elapsed;
        due.writes
            .into_iter()
            .map(|write| {
                let of = |type_: &str| {
                    let condition = write
                        .status
                        .conditions
                        .iter()
                        .find(|condition| condition.type_ == type_)
                        .unwrap();
                    let generation = condition.observed_generation.unwrap();
                    format!(
                        "{} {} {}: {generation}",
                        condition.status, condition.reason, condition.message
                    )
                };
                let said = [of(ACCEPTED), of(ENFORCED)];
                self.board.written(&write.object, Some(write.status), now);
                said
            })
            .collect()
    }
}

const FINE: &str = "True Accepted in force as it is written";
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_policy_is_enforced_node_by_node() {
    let mut trial = Trial::settled();
    trial.board.expect(Some(3));
    ["a", "b"].into_iter().for_each(|node| trial.node(node));
    trial.observe(change("p", 1));
    // Who says something soon is told of in one write.
    assert!(trial.writes(Duration::from_millis(0)).is_empty());
    trial.says("a", "p", 1);
    assert_eq!(
        trial.writes(SECOND),
        [[
            format!("{FINE}: 1"),
            "False Pending enforced on 1 of 3 nodes; not on b; 1 without word from their agent: 1"
                .to_owned()
        ]]
    );
    assert!(trial.writes(SECOND).is_empty(), "nothing has changed");
    trial.says("b", "p", 1);
    trial.node("c");
    trial.says("c", "p", 1);
    let written = trial.writes(SECOND);
    assert_eq!(written[0][1], "True Enforced enforced on 3 of 3 nodes: 1");
    assert!(trial.writes(SECOND).is_empty());

    // The next generation.
    let status = trial.board_status();
    trial.observe(Change { status: Some(status), ..change("p", 2) });
    let written = trial.writes(SECOND);
    assert_eq!(written[0][1], "False Pending enforced on 0 of 3 nodes; not on a, b, c: 2");
}

impl Trial {
    /// What is known of the status of the object `p`.
    fn board_status(&mut self) -> ObjectStatus {
        self.board.observed_status(&object("p")).unwrap()
    }
}

#[test]
fn an_object_is_written_once_a_second_at_most() {
    let mut trial = Trial::settled();
    trial.node("a");
    trial.observe(change("p", 1));
    let mut writes = 0;
    for generation in 1..=100 {
        trial.says("a", "p", generation);
        let status = trial.board.observed_status(&object("p"));
        trial.observe(Change { status, ..change("p", generation) });
        writes += trial.writes(Duration::from_millis(50)).len();
    }
    assert!((4..=6).contains(&writes), "{writes} in 5 s");
}

#[test]
fn a_wrong_object_names_its_field() {
    let mut trial = Trial::settled();
    trial.node("a");
    let findings = vec![
        finding(Severity::Warning, "spec.egress[0].toPorts[0].rules.http"),
        finding(Severity::Error, "spec.ingress[0].fromCIDR[0]"),
    ];
    trial.observe(Change { findings, ..change("p", 1) });
    let due = trial.after(SECOND);
    let [write] = &due.writes[..] else { panic!("{due:?}") };
    let accepted = &write.status.conditions[0];
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", "Rejected"));
    assert_eq!(accepted.message, "spec.ingress[0].fromCIDR[0]: is wrong; correct it");
    assert_eq!(write.status.conditions[1].reason, "NotAccepted");
    let [event] = &due.events[..] else { panic!("{due:?}") };
    assert_eq!((event.reason, &event.note), ("Rejected", &accepted.message));
    assert!(trial.after(SECOND).events.is_empty());
    assert_eq!(trial.after(Duration::from_secs(31 * 60)).events.len(), 1);
}

#[test]
fn what_another_object_does_to_it_is_told_as_its_own() {
    let mut trial = Trial::settled();
    trial.node("a");
    trial.observe(Change { status: None, ..change("p", 1) });
    assert!(trial.after(SECOND).events.is_empty());
    let off = [(object("p"), vec![finding(Severity::Warning, "kind")])];
    trial.board.tell(off.clone().into(), trial.start + trial.elapsed);
    let due = trial.after(SECOND);
    assert_eq!(
        (due.events[0].reason, &*due.events[0].note),
        ("NotEnforced", "kind: is wrong; correct it")
    );
    trial.board.tell(off.into(), trial.start + trial.elapsed);
    assert!(trial.after(SECOND).events.is_empty(), "told twice");
    trial.board.tell(BTreeMap::new(), trial.start + trial.elapsed);
    assert!(trial.after(SECOND).events.is_empty());
}

#[test]
fn kinds_of_others_have_events_alone() {
    let mut trial = Trial::settled();
    trial.node("a");
    let findings = vec![finding(Severity::Warning, "spec.rules[0].to[0].operation.paths")];
    trial.observe(Change { findings, status: None, ..change("p", 1) });
    let due = trial.after(SECOND);
    assert!(due.writes.is_empty());
    assert_eq!(due.events[0].reason, "NotEnforced");
}

#[test]
fn a_new_leader_takes_nothing_back_before_it_has_heard_of_all() {
    let mut before = Trial::settled();
    ["a", "b"].into_iter().for_each(|node| before.node(node));
    before.observe(change("p", 1));
    ["a", "b"].into_iter().for_each(|node| before.says(node, "p", 1));
    assert_eq!(before.writes(SECOND).len(), 1);
    let status = before.board_status();

    let mut trial = Trial::new();
    trial.board.expect(Some(2));
    trial.observe(Change { status: Some(status), ..change("p", 1) });
    assert!(trial.writes(SECOND).is_empty());
    trial.node("a");
    trial.says("a", "p", 1);
    assert!(trial.writes(SECOND).is_empty());
    // One that does not come back is told of.
    let written = trial.writes(Duration::from_secs(30));
    assert_eq!(
        written[0][1],
        "False Pending enforced on 1 of 2 nodes; 1 without word from their agent: 1"
    );
}

#[test]
fn an_agent_may_be_away_for_a_while() {
    let mut trial = Trial::settled();
    trial.node("a");
    trial.observe(change("p", 1));
    trial.says("a", "p", 1);
    trial.board.expect(Some(1));
    assert_eq!(trial.writes(SECOND).len(), 1);
    trial.leaves("a");
    assert!(trial.writes(Duration::from_secs(30)).is_empty());
    trial.node("a");
    // What it says now is all that counts.
    let written = trial.writes(SECOND);
    assert_eq!(written[0][1], "False Pending enforced on 0 of 1 nodes; not on a: 1");
    trial.says("a", "p", 1);
    assert_eq!(trial.writes(SECOND).len(), 1);
    trial.leaves("a");
    let written = trial.writes(Duration::from_secs(61));
    assert_eq!(
        written[0][1],
        "False Pending enforced on 0 of 1 nodes; 1 without word from their agent: 1"
    );
}

#[test]
fn an_older_stream_speaks_for_its_node_no_more() {
    let mut trial = Trial::settled();
    let node = Arc::from("a");
    let older = trial.board.connected(&node);
    let newer = trial.board.connected(&node);
    assert!(!trial.board.report("a", older, true, [], []));
    trial.board.disconnected("a", older, trial.start + trial.elapsed);
    assert!(trial.board.report("a", newer, true, [], []));
}

#[test]
fn an_agent_says_what_has_changed() {
    let mut told = HashMap::new();
    let mesh = |versions: &[(&str, i64)]| -> BTreeMap<ObjectRef, ObjectVersion> {
        versions
            .iter()
            .map(|(name, generation)| (object(name), version(name, *generation)))
            .collect()
    };
    let mut say = |versions, complete| {
        report::difference(&mut told, &mesh(versions), complete).map(|report| {
            let mut in_force: Vec<_> = report
                .in_force
                .into_iter()
                .map(|version| format!("{}={}", version.uid, version.generation))
                .collect();
            in_force.sort();
            (in_force.join(" "), report.gone.join(" "))
        })
    };
    let said = |in_force: &str, gone: &str| Some((in_force.to_owned(), gone.to_owned()));
    assert_eq!(say(&[], true), said("", ""));
    assert_eq!(say(&[("a", 1), ("b", 1)], false), said("a=1 b=1", ""));
    assert_eq!(say(&[("a", 1), ("b", 1)], false), None);
    assert_eq!(say(&[("a", 2)], false), said("a=2", "b"));
    assert_eq!(say(&[("a", 2)], true), said("a=2", ""));
}

#[test]
fn an_event_says_the_same_under_the_same_name() {
    let notice = |note: String| Notice {
        object: object("p"),
        api_version: "weft.dev/v1alpha1".into(),
        uid: "u".into(),
        reason: "Rejected",
        note,
    };
    let at = |notice: &Notice| events::event(notice, "weft-ca-1", Timestamp::now());
    let (one, same) = (at(&notice("a".into())), at(&notice("a".into())));
    assert_eq!(one.metadata.name, same.metadata.name);
    assert_ne!(one.metadata.name, at(&notice("b".into())).metadata.name);
    assert_eq!(one.metadata.namespace.as_deref(), Some("shop"));
    let long = at(&notice("ä".repeat(2000)));
    assert!(long.note.unwrap().len() <= 1024);
}
