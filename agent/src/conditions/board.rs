//! What is known of objects and nodes, and what is to be written about it. Pure: time is an
//! argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use weft_model::dialect::{Finding, Severity};
use weft_model::mesh::{ObjectRef, ObjectVersion};

use crate::crd::{ACCEPTED, ENFORCED, ObjectStatus};

/// At most one write per object in this time.
const BETWEEN_WRITES: Duration = Duration::from_secs(1);
/// Nodes that say something within this time after a change are told of in one write.
const GATHERING: Duration = Duration::from_millis(500);
/// A node whose agent is away counts for this long: its programs enforce without it.
const AWAY: Duration = Duration::from_secs(60);
/// A new leader takes back what the last one said about nodes after this time.
const HANDOVER: Duration = Duration::from_secs(30);
/// A finding is told again this often: Events are forgotten after an hour.
const BETWEEN_EVENTS: Duration = Duration::from_secs(30 * 60);
/// Nodes that a message names.
const NAMED_NODES: usize = 5;
/// Findings that a message names.
const NAMED_FINDINGS: usize = 5;

/// An object, as the API server has it and as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Which.
    pub object: ObjectRef,
    /// Its `apiVersion`.
    pub api_version: Arc<str>,
    /// Its uid, and its generation (0 for kinds that have none).
    pub version: ObjectVersion,
    /// What is to be said about it.
    pub findings: Vec<Finding>,
    /// Its status, where it is of weft.dev.
    pub status: Option<ObjectStatus>,
}

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Of which object.
    pub object: ObjectRef,
    /// Its `apiVersion`.
    pub api_version: Arc<str>,
    /// The object, and no other of its name.
    pub uid: Arc<str>,
    /// All of it.
    pub status: ObjectStatus,
}

/// An Event to be published.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Notice {
    pub object: ObjectRef,
    pub api_version: Arc<str>,
    pub uid: Arc<str>,
    /// `Rejected` or `NotEnforced`.
    pub reason: &'static str,
    pub note: String,
}

/// What is to be done now.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub writes: Vec<Write>,
    pub events: Vec<Notice>,
}

/// What is known of objects and nodes.
#[derive(Debug)]
pub struct Board {
    since: Instant,
    objects: BTreeMap<ObjectRef, Object>,
    nodes: BTreeMap<Arc<str>, Node>,
    expected: Option<usize>,
    last_stream: u64,
}

#[derive(Debug)]
struct Object {
    change: Change,
    /// What is to be said about it because of other objects.
    because_of_others: Vec<Finding>,
    /// When it, or what nodes say of it, last changed.
    changed: Instant,
    written: Option<Instant>,
    notified: Option<Instant>,
    /// Whether what is written may differ from what should be.
    dirty: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// By uid.
    in_force: HashMap<Arc<str>, i64>,
    /// Which stream speaks for it.
    stream: u64,
    /// Since when its agent is away.
    away: Option<Instant>,
}

impl Board {
    /// Of a leader that leads since `now`.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            objects: BTreeMap::new(),
            nodes: BTreeMap::new(),
            expected: None,
            last_stream: 0,
        }
    }

    /// Takes what the API server has.
    pub(super) fn observe(&mut self, change: Change, now: Instant) {
        match self.objects.get_mut(&change.object) {
            Some(known) if known.change == change => {}
            Some(known) => {
                let same = known.change.version == change.version
                    && known.change.findings == change.findings;
                if !same {
                    known.changed = now;
                    known.notified = None;
                }
                known.change = change;
                known.dirty = true;
            }
            None => {
                let object = Object {
                    because_of_others: Vec::new(),
                    changed: now,
                    written: None,
                    notified: None,
                    dirty: true,
                    change: change.clone(),
                };
                self.objects.insert(change.object, object);
            }
        }
    }

    /// Takes what is to be said about objects because of others, in the place of what was.
    pub(super) fn tell(&mut self, mut findings: BTreeMap<ObjectRef, Vec<Finding>>, now: Instant) {
        for (name, object) in &mut self.objects {
            let said = findings.remove(name).unwrap_or_default();
            if object.because_of_others != said {
                object.because_of_others = said;
                object.changed = now;
                object.notified = None;
                object.dirty = true;
            }
        }
    }

    /// Forgets an object that is gone.
    pub(super) fn forget(&mut self, object: &ObjectRef) {
        self.objects.remove(object);
    }

    /// Forgets the objects of a kind that a list does not have.
    pub(super) fn retain(&mut self, kind: &str, there: &BTreeSet<ObjectRef>) {
        self.objects.retain(|object, _| *object.kind != *kind || there.contains(object));
    }

    /// How many nodes there should be.
    pub(super) fn expect(&mut self, nodes: Option<usize>) {
        if self.expected != nodes {
            self.expected = nodes;
            self.objects.values_mut().for_each(|object| object.dirty = true);
        }
    }

    /// An agent begins to report. Returns the number that its reports carry.
    pub(super) fn connected(&mut self, node: &Arc<str>) -> u64 {
        self.last_stream += 1;
        let known = self.nodes.entry(node.clone()).or_default();
        known.stream = self.last_stream;
        known.away = None;
        self.last_stream
    }

    /// What an agent says. False if another stream speaks for the node now.
    pub(super) fn report(
        &mut self,
        node: &str,
        stream: u64,
        complete: bool,
        in_force: impl IntoIterator<Item = ObjectVersion>,
        gone: impl IntoIterator<Item = String>,
    ) -> bool {
        let Some(known) = self.nodes.get_mut(node).filter(|known| known.stream == stream) else {
            return false;
        };
        let before =
            if complete { std::mem::take(&mut known.in_force) } else { Default::default() };
        let mut touched: BTreeSet<Arc<str>> = before.into_keys().collect();
        for uid in gone {
            if let Some((uid, _)) = known.in_force.remove_entry(&*uid) {
                touched.insert(uid);
            }
        }
        for ObjectVersion { uid, generation } in in_force {
            touched.insert(uid.clone());
            known.in_force.insert(uid, generation);
        }
        for object in self.objects.values_mut() {
            object.dirty |= touched.contains(&object.change.version.uid);
        }
        true
    }

    /// An agent's stream has ended.
    pub(super) fn disconnected(&mut self, node: &str, stream: u64, now: Instant) {
        if let Some(known) = self.nodes.get_mut(node).filter(|known| known.stream == stream) {
            known.away = Some(now);
        }
    }

    /// A write was made, or was not.
    pub(super) fn written(&mut self, object: &ObjectRef, done: Option<ObjectStatus>, now: Instant) {
        if let Some(known) = self.objects.get_mut(object) {
            known.written = Some(now);
            match done {
                Some(status) => known.change.status = Some(status),
                None => known.dirty = true,
            }
        }
    }

    /// What is known of an object's status.
    #[cfg(test)]
    pub(super) fn observed_status(&self, object: &ObjectRef) -> Option<ObjectStatus> {
        self.objects.get(object)?.change.status.clone()
    }

    /// What is to be done now.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let before = self.nodes.len();
        self.nodes.retain(|_, node| node.away.is_none_or(|since| now < since + AWAY));
        if self.nodes.len() != before {
            self.objects.values_mut().for_each(|object| object.dirty = true);
        }
        let is_handover = now < self.since + HANDOVER;
        let total = self.expected.unwrap_or(0).max(self.nodes.len());
        let mut due = Due::default();
        for (name, object) in &mut self.objects {
            let findings: Vec<&Finding> =
                object.change.findings.iter().chain(&object.because_of_others).collect();
            if object.notified.is_none_or(|last| now >= last + BETWEEN_EVENTS) {
                object.notified = Some(now);
                due.events.extend(notice(&object.change, &findings));
            }
            let is_soon = object.written.is_some_and(|last| now < last + BETWEEN_WRITES);
            let Some(status) = object.change.status.as_ref().filter(|_| object.dirty && !is_soon)
            else {
                continue;
            };
            let enforcing = Enforcing::of(&self.nodes, total, &object.change.version);
            if !enforcing.is_everywhere() && now < object.changed + GATHERING {
                continue;
            }
            let wanted = wanted(&object.change, &findings, status, &enforcing, is_handover);
            if wanted == *status {
                // Until the handover is over, it may differ yet.
                object.dirty = is_handover;
                continue;
            }
            object.dirty = is_handover;
            object.written = Some(now);
            due.writes.push(Write {
                object: name.clone(),
                api_version: object.change.api_version.clone(),
                uid: object.change.version.uid.clone(),
                status: wanted,
            });
        }
        due
    }
}

/// On how many nodes a version is in force.
struct Enforcing {
    nodes: usize,
    total: usize,
    missing: Vec<Arc<str>>,
}

impl Enforcing {
    fn of(nodes: &BTreeMap<Arc<str>, Node>, total: usize, version: &ObjectVersion) -> Self {
        let has = |node: &Node| {
            node.in_force.get(&version.uid).is_some_and(|has| *has >= version.generation)
        };
        let missing: Vec<_> =
            nodes.iter().filter(|(_, node)| !has(node)).map(|(name, _)| name.clone()).collect();
        Self { nodes: nodes.len() - missing.len(), total, missing }
    }

    fn is_everywhere(&self) -> bool {
        self.nodes >= self.total && self.total > 0
    }

    fn message(&self) -> String {
        let Self { nodes, total, missing } = self;
        let mut text = format!("enforced on {nodes} of {total} nodes");
        if let Some((first, rest)) = missing.split_first() {
            let _ = write!(text, "; not on {first}");
            for name in rest.iter().take(NAMED_NODES - 1) {
                let _ = write!(text, ", {name}");
            }
            if missing.len() > NAMED_NODES {
                let _ = write!(text, " and {} more", missing.len() - NAMED_NODES);
            }
        }
        let silent = total.saturating_sub(nodes + missing.len());
        if silent > 0 {
            let _ = write!(text, "; {silent} without word from their agent");
        }
        text
    }
}

/// The status that an object should have.
fn wanted(
    change: &Change,
    findings: &[&Finding],
    status: &ObjectStatus,
    enforcing: &Enforcing,
    is_handover: bool,
) -> ObjectStatus {
    let generation = change.version.generation;
    let of = |severity| of_severity(findings, severity);
    let is_accepted = of(Severity::Error).next().is_none();
    let accepted = match (is_accepted, of(Severity::Warning).next().is_none()) {
        (false, _) => ("False", "Rejected", list(of(Severity::Error))),
        (true, false) => ("True", "AcceptedWithWarnings", list(of(Severity::Warning))),
        (true, true) => ("True", "Accepted", "in force as it is written".to_owned()),
    };
    let enforced = if !is_accepted {
        let rest = "the last version that was accepted stays in force; where there is none, the \
                    pods that it selects are denied";
        ("False", "NotAccepted", rest.to_owned())
    } else if enforcing.total == 0 {
        ("Unknown", "NoAgents", "no agent has reported yet".to_owned())
    } else if enforcing.is_everywhere() {
        ("True", "Enforced", enforcing.message())
    } else {
        ("False", "Pending", enforcing.message())
    };
    let old = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
    let mut conditions = vec![condition(ACCEPTED, accepted, generation, old(ACCEPTED))];
    match old(ENFORCED) {
        // A new leader has not heard of all nodes yet, and the last one had.
        Some(before)
            if is_handover
                && is_accepted
                && !enforcing.is_everywhere()
                && before.observed_generation == Some(generation) =>
        {
            conditions.push(before.clone());
        }
        before => conditions.push(condition(ENFORCED, enforced, generation, before)),
    }
    ObjectStatus { observed_generation: Some(generation), conditions }
}

fn condition(
    type_: &str,
    (status, reason, message): (&str, &str, String),
    generation: i64,
    before: Option<&Condition>,
) -> Condition {
    let since = before.filter(|before| before.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        // The API server keeps whole seconds.
        last_transition_time: since.map_or_else(
            || {
                let now = Timestamp::now();
                Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
            },
            |since| since.last_transition_time.clone(),
        ),
    }
}

fn of_severity<'a>(
    findings: &'a [&'a Finding],
    severity: Severity,
) -> impl Iterator<Item = &'a Finding> {
    findings.iter().copied().filter(move |finding| finding.severity == severity)
}

/// `field: reason; field: reason`
fn list<'a>(findings: impl Iterator<Item = &'a Finding>) -> String {
    let mut texts: Vec<String> = findings
        .map(|finding| match &*finding.field {
            "" => finding.reason.clone(),
            field => format!("{field}: {}", finding.reason),
        })
        .collect();
    let more = texts.len().saturating_sub(NAMED_FINDINGS);
    texts.truncate(NAMED_FINDINGS);
    if more > 0 {
        texts.push(format!("and {more} more (`weft analyze` shows all)"));
    }
    texts.join("; ")
}

fn notice(change: &Change, findings: &[&Finding]) -> Option<Notice> {
    let worst = findings.iter().map(|finding| finding.severity).max()?;
    let reason = match worst {
        Severity::Note => return None,
        Severity::Warning => "NotEnforced",
        Severity::Error => "Rejected",
    };
    Some(Notice {
        object: change.object.clone(),
        api_version: change.api_version.clone(),
        uid: change.version.uid.clone(),
        reason,
        note: list(of_severity(findings, worst)),
    })
}
