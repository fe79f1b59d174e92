//! The way from one node's tables to the next, entry by entry.

use std::collections::{BTreeMap, HashSet};

use weft_common::{Address, Decision, PodId, PolicyEntry, PortKey, Reason, judge, judge_source};
use weft_model::compile::{Lookup, Tables};
use weft_model::evaluate::Connection;
use weft_model::mesh::{Mesh, Name, Protocol};

use crate::compare::ends;

/// From the tables before to the tables after, entry by entry, in the order of the design.
pub struct Walk<'a> {
    pub before: (&'a Mesh, &'a Tables),
    pub after: (&'a Mesh, &'a Tables),
    /// Entries of `POLICY` that are there only on the way.
    pub bridge: BTreeMap<(u32, u32), PolicyEntry>,
}

/// A judgement: of which pod, in which direction, about which peer.
#[derive(Clone, Copy, Debug)]
struct Question {
    pod: PodId,
    ingress: bool,
    peer: Address,
    proven: bool,
    protocol: u8,
    port: u16,
}

impl Walk<'_> {
    /// How many states there were, and how many judgements were made in them.
    pub fn check(&self, connections: &[Connection]) -> Result<(usize, usize), String> {
        let questions = self.questions(connections);
        let (before, after) = (self.before.1, self.after.1);
        let answers = |tables: &Tables| -> Vec<Option<Decision>> {
            let lookup = Lookup::of(tables);
            questions.iter().map(|question| question.answer(&lookup)).collect()
        };
        let (old, new) = (answers(before), answers(after));
        let mut now = before.clone();
        let mut states = 0;
        let mut judged = 0;
        let mut wrong = None;
        let mut look = |now: &Tables, map: &str| {
            states += 1;
            let lookup = Lookup::of(now);
            for (index, question) in questions.iter().enumerate() {
                let answer = question.answer(&lookup);
                judged += 1;
                // A pod that is not in the kernel is not judged: it is denied.
                let fine = answer.is_none()
                    || answer == old[index]
                    || answer == new[index]
                    || (!self.bridge.is_empty() && answer.is_some_and(is_unsettled));
                if !fine && wrong.is_none() {
                    let (old, new) = (old[index], new[index]);
                    wrong = Some(format!(
                        "{map}: {question:?}: {answer:?}, before {old:?}, after {new:?}"
                    ));
                }
            }
        };

        put(&mut now, after, |t| &mut t.ports, |t| &t.ports, false, &mut look, "PORTS");
        put(&mut now, after, |t| &mut t.backends, |t| &t.backends, false, &mut look, "BACKENDS");
        let mut on_the_way = after.clone();
        on_the_way.policy.extend(&self.bridge);
        put(&mut now, &on_the_way, |t| &mut t.policy, |t| &t.policy, false, &mut look, "POLICY");
        put(&mut now, after, |t| &mut t.services, |t| &t.services, false, &mut look, "SERVICES");
        put(&mut now, after, |t| &mut t.addresses, |t| &t.addresses, true, &mut look, "ADDRESSES");
        put(&mut now, after, |t| &mut t.pods, |t| &t.pods, false, &mut look, "PODS");
        drop_rest(&mut now, after, |t| &mut t.pods, |t| &t.pods, &mut look, "PODS");
        drop_rest(&mut now, after, |t| &mut t.addresses, |t| &t.addresses, &mut look, "ADDRESSES");
        drop_rest(&mut now, after, |t| &mut t.services, |t| &t.services, &mut look, "SERVICES");
        drop_rest(&mut now, after, |t| &mut t.policy, |t| &t.policy, &mut look, "POLICY");
        drop_rest(&mut now, after, |t| &mut t.backends, |t| &t.backends, &mut look, "BACKENDS");
        drop_rest(&mut now, after, |t| &mut t.ports, |t| &t.ports, &mut look, "PORTS");
        assert!(
            now.pods == after.pods
                && now.addresses == after.addresses
                && now.policy == after.policy
                && now.ports == after.ports
                && now.services == after.services
                && now.backends == after.backends,
            "the way does not lead there"
        );
        match wrong {
            Some(wrong) => Err(wrong),
            None => Ok((states, judged)),
        }
    }

    fn questions(&self, connections: &[Connection]) -> Vec<Question> {
        let mut questions = Vec::new();
        let ids: HashSet<PodId> = self.before.1.pods.values().map(|pod| pod.id).collect();
        for connection in connections {
            let Some((source, destination)) = ends(self.after.0, connection) else { continue };
            for (own, peer, ingress) in [(source, destination, false), (destination, source, true)]
            {
                // Before and after, it is one pod that has the address.
                let (Some(was), Some(is)) = (self.before.0.pod_at(own), self.after.0.pod_at(own))
                else {
                    continue;
                };
                let id = self.after.1.pods.get(&is.name).map(|pod| pod.id);
                let Some(id) = id.filter(|id| was.name == is.name && ids.contains(id)) else {
                    continue;
                };
                questions.push(Question {
                    pod: id,
                    ingress,
                    peer: peer.into(),
                    proven: ingress && connection.proven,
                    protocol: match connection.protocol {
                        Protocol::Icmp if own.is_ipv6() => 58,
                        protocol => protocol.number(),
                    },
                    port: connection.port,
                });
            }
        }
        questions
    }
}

impl Question {
    fn answer(&self, lookup: &Lookup<'_>) -> Option<Decision> {
        let pod = lookup.pod(self.pod)?;
        let Self { peer, proven, protocol, port, .. } = *self;
        if self.ingress {
            return Some(judge_source(lookup, &pod, &peer, proven, protocol, port));
        }
        let class = lookup.address(peer)?.class;
        Some(judge(lookup, pod.egress_subject, class, false, protocol, port))
    }
}

/// Denied while the agent does not know better.
fn is_unsettled(decision: Decision) -> bool {
    decision == Decision::because(Reason::UnknownPod)
}

trait Upserts: Ord + Clone {
    /// How long the prefix is, for maps where that counts.
    fn length(&self) -> u8 {
        0
    }
}

impl Upserts for (u8, Address) {
    fn length(&self) -> u8 {
        self.0
    }
}
impl Upserts for (u8, PortKey) {}
impl Upserts for (u32, u32) {}
impl Upserts for (Address, u16, u8) {}
impl Upserts for Name {}

fn put<K: Upserts, V: Clone + PartialEq>(
    now: &mut Tables,
    after: &Tables,
    of_mut: impl Fn(&mut Tables) -> &mut BTreeMap<K, V>,
    of: impl Fn(&Tables) -> &BTreeMap<K, V>,
    longest_first: bool,
    look: &mut impl FnMut(&Tables, &str),
    map: &str,
) {
    let known = of(now).clone();
    let mut changed: Vec<(K, V)> = of(after)
        .iter()
        .filter(|(key, value)| known.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if longest_first {
        changed.sort_by_key(|(key, _)| std::cmp::Reverse(key.length()));
    }
    for (key, value) in changed {
        of_mut(now).insert(key, value);
        look(now, map);
    }
}

fn drop_rest<K: Upserts, V>(
    now: &mut Tables,
    after: &Tables,
    of_mut: impl Fn(&mut Tables) -> &mut BTreeMap<K, V>,
    of: impl Fn(&Tables) -> &BTreeMap<K, V>,
    look: &mut impl FnMut(&Tables, &str),
    map: &str,
) {
    let mut gone: Vec<K> =
        of(now).keys().filter(|key| !of(after).contains_key(key)).cloned().collect();
    // Shortest prefix first.
    gone.sort_by_key(Upserts::length);
    for key in gone {
        of_mut(now).remove(&key);
        look(now, map);
    }
}
