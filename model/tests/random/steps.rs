//! A mesh that changes step by step under one compiler: what numbers mean never changes, and
//! while the tables go into the kernel entry by entry, every decision is the old or the new one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use weft_common::Reason;
use weft_common::{Address, Decision, Endpoint, PodId, PolicyEntry, PortKey, judge};
use weft_model::compile::{Compiler, InForce, Lookup, Tables, bridge};
use weft_model::evaluate::Connection;
use weft_model::mesh::{Mesh, Name, Origin, Protocol};

use crate::compare::{Lookups, compare, ends};
use crate::generate::Generator;
use crate::seed;

const MESHES: u64 = 40;
const STEPS: usize = 12;
const CONNECTIONS: usize = 60;

#[test]
fn every_state_on_the_way_decides_as_before_or_after() {
    let mut states = 0;
    let mut judged = 0;
    for round in 0..MESHES {
        let mut generator = Generator::seeded(seed() ^ 0xabcd ^ round << 24);
        let mut mesh = generator.mesh();
        let nodes: Vec<Arc<str>> = mesh.nodes.keys().cloned().collect();
        let mut compilers: BTreeMap<Arc<str>, Compiler> =
            nodes.iter().map(|node| (node.clone(), Compiler::starting_at(1))).collect();
        let mut meanings: BTreeMap<Arc<str>, Meanings> = BTreeMap::new();
        let mut cluster = BTreeMap::new();
        for (node, compiler) in &mut compilers {
            cluster.insert(node.clone(), compiler.compile(&mesh, node));
        }
        for step in 0..STEPS {
            let before = mesh.clone();
            let change = mutate(&mut generator, &mut mesh);
            let connections: Vec<Connection> =
                (0..CONNECTIONS).map(|_| generator.connection(&mesh)).collect();
            let mut next = BTreeMap::new();
            for (node, compiler) in &mut compilers {
                let tables = compiler.compile(&mesh, node);
                let context = format!(
                    "WEFT_SEED={}, mesh {round}, step {step} ({change}), node {node}",
                    seed()
                );
                meanings.entry(node.clone()).or_default().check(&tables, &context);
                let walk = Walk {
                    before: (&before, &cluster[node]),
                    after: (&mesh, &tables),
                    bridge: BTreeMap::new(),
                };
                let (some, more) = match walk.check(&connections) {
                    Ok(counts) => counts,
                    Err(wrong) => panic!("{context}: {wrong}"),
                };
                states += some;
                judged += more;
                next.insert(node.clone(), tables);
            }
            cluster = next;
            let lookups = Lookups::of(&cluster);
            for connection in &connections {
                if let Some(Err(difference)) = compare(&mesh, &lookups, connection) {
                    panic!("mesh {round}, step {step} ({change}): {difference}\nin {mesh:#?}");
                }
            }
        }
    }
    println!("{states} states on the way, {judged} judgements, each the old one or the new one");
    assert!(states > 10_000);
}

#[test]
fn a_change_that_failed_is_made_up_for() {
    for round in 0..MESHES {
        let mut generator = Generator::seeded(seed() ^ 0xfa11 ^ round << 24);
        let mut mesh = generator.mesh();
        let mut compiler = Compiler::starting_at(1);
        let mut in_force = compiler.compile(&mesh, "one");
        for step in 0..STEPS {
            let before = mesh.clone();
            let change = mutate(&mut generator, &mut mesh);
            for _ in 0..generator.rng.usize(0..3) {
                drop(compiler.compile(&mesh, "one"));
                compiler.not_applied();
            }
            let tables = compiler.compile(&mesh, "one");
            let connections: Vec<Connection> =
                (0..CONNECTIONS).map(|_| generator.connection(&mesh)).collect();
            let walk = Walk {
                before: (&before, &in_force),
                after: (&mesh, &tables),
                bridge: BTreeMap::new(),
            };
            if let Err(wrong) = walk.check(&connections) {
                panic!("WEFT_SEED={}, mesh {round}, step {step} ({change}): {wrong}", seed());
            }
            in_force = tables;
        }
    }
}

#[test]
fn a_restarted_agent_decides_as_before_or_after() {
    let results: Vec<_> = (0..MESHES).map(|round| restart(round, bridge)).collect();
    let (mut states, mut judged) = (0, 0);
    for (round, result) in results.into_iter().enumerate() {
        let (some, more) =
            result.unwrap_or_else(|wrong| panic!("WEFT_SEED={}, mesh {round}: {wrong}", seed()));
        states += some;
        judged += more;
    }
    println!("{states} states after a restart, {judged} judgements");
    assert!(states > 1_000);
}

/// The check is checked.
#[test]
fn without_a_bridge_a_restarted_agent_would_not() {
    let wrong = (0..MESHES).filter(|round| restart(*round, |_, _| BTreeMap::new()).is_err());
    let wrong = wrong.count();
    println!("without a bridge: found in {wrong} of {MESHES} meshes");
    assert!(wrong > 0);
}

type Bridge = fn(InForce<'_>, &Tables) -> BTreeMap<(u32, u32), PolicyEntry>;

/// An agent restarts, and finds the mesh as it was, or changed.
fn restart(round: u64, bridge: Bridge) -> Result<(usize, usize), String> {
    let mut generator = Generator::seeded(seed() ^ 0xbeef ^ round << 24);
    let before = generator.mesh();
    let node: Arc<str> = "one".into();
    let mut compiler = Compiler::starting_at(1);
    let old = compiler.compile(&before, &node);
    let mut mesh = before.clone();
    if generator.chance(3) {
        mutate(&mut generator, &mut mesh);
    }
    let mut restarted = Compiler::starting_at(compiler.next_id());
    for (name, pod) in &old.pods {
        restarted.adopt_pod(name.clone(), pod.uid.clone(), pod.id);
    }
    let tables = restarted.compile(&mesh, &node);
    let in_force = InForce { addresses: &old.addresses, policy: &old.policy };
    let walk = Walk {
        before: (&before, &old),
        after: (&mesh, &tables),
        bridge: bridge(in_force, &tables),
    };
    let connections: Vec<Connection> =
        (0..CONNECTIONS).map(|_| generator.connection(&mesh)).collect();
    walk.check(&connections)
}

/// Changes one object.
fn mutate(generator: &mut Generator, mesh: &mut Mesh) -> &'static str {
    fn remove_one<K: Clone + Ord, V>(generator: &mut Generator, map: &mut BTreeMap<K, V>) {
        let keys: Vec<K> = map.keys().cloned().collect();
        if !keys.is_empty() {
            map.remove(generator.of(&keys));
        }
    }
    match generator.rng.u8(0..12) {
        0..=2 => {
            generator.put_policy(mesh);
            "policy put"
        }
        3 => {
            remove_one(generator, &mut mesh.policies);
            "policy removed"
        }
        4 => {
            generator.put_authorization(mesh);
            "authorization put"
        }
        5 => {
            remove_one(generator, &mut mesh.authorization);
            "authorization removed"
        }
        6 => {
            generator.put_peer_authentication(mesh);
            "peer authentication put"
        }
        7 => {
            remove_one(generator, &mut mesh.peer_authentication);
            "peer authentication removed"
        }
        8..=9 => {
            generator.put_pod(mesh);
            "pod put"
        }
        10 => {
            remove_one(generator, &mut mesh.pods);
            "pod removed"
        }
        _ => {
            let services = mesh.services.len();
            if services > 2 {
                remove_one(generator, &mut mesh.services);
            } else {
                generator.put_service(mesh);
            }
            "service changed"
        }
    }
}

/// What every number has ever meant.
#[derive(Default)]
struct Meanings {
    policy: HashMap<(u32, u32), PolicyEntry>,
    port_tables: HashMap<u32, Vec<(u8, PortKey, Decision)>>,
    backends: HashMap<u32, Vec<Endpoint>>,
    rules: HashMap<u32, Origin>,
    pods: HashMap<PodId, (Name, Arc<str>)>,
}

impl Meanings {
    fn check(&mut self, tables: &Tables, context: &str) {
        fn same<
            K: std::hash::Hash + Eq + Copy + std::fmt::Debug,
            V: PartialEq + std::fmt::Debug,
        >(
            known: &mut HashMap<K, V>,
            key: K,
            value: V,
            context: &str,
        ) {
            match known.get(&key) {
                Some(before) => assert_eq!(*before, value, "{context}: {key:?}"),
                None => drop(known.insert(key, value)),
            }
        }
        for (key, entry) in &tables.policy {
            same(&mut self.policy, *key, *entry, context);
        }
        let mut port_tables: HashMap<u32, Vec<_>> = HashMap::new();
        for ((bits, key), decision) in &tables.ports {
            port_tables.entry(key.table).or_default().push((*bits, *key, *decision));
        }
        for (table, entries) in port_tables {
            same(&mut self.port_tables, table, entries, context);
        }
        let mut sets: HashMap<u32, Vec<_>> = HashMap::new();
        for ((set, _), endpoint) in &tables.backends {
            sets.entry(*set).or_default().push(*endpoint);
        }
        for (set, endpoints) in sets {
            same(&mut self.backends, set, endpoints, context);
        }
        for (rule, origin) in tables.rules.iter() {
            same(&mut self.rules, *rule, origin.clone(), context);
        }
        for (name, pod) in &tables.pods {
            same(&mut self.pods, pod.id, (name.clone(), pod.uid.clone()), context);
        }
    }
}

/// From the tables before to the tables after, entry by entry, in the order of the design.
struct Walk<'a> {
    before: (&'a Mesh, &'a Tables),
    after: (&'a Mesh, &'a Tables),
    /// Entries of `POLICY` that are there only on the way.
    bridge: BTreeMap<(u32, u32), PolicyEntry>,
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
    fn check(&self, connections: &[Connection]) -> Result<(usize, usize), String> {
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
        let subject = if self.ingress { pod.ingress_subject } else { pod.egress_subject };
        let class = lookup.address(self.peer)?.class;
        Some(judge(lookup, subject, class, self.proven, self.protocol, self.port))
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
