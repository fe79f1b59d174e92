//! A mesh that changes step by step under one compiler: what numbers mean never changes, and
//! while the tables go into the kernel entry by entry, every decision is the old or the new one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weft_common::{Decision, Endpoint, PodId, PolicyEntry, PortKey};
use weft_model::compile::{Compiler, InForce, Tables, bridge};
use weft_model::evaluate::Connection;
use weft_model::mesh::{Mesh, Name, Origin};

use crate::compare::{Lookups, compare};
use crate::generate::Generator;
use crate::seed;
use crate::walk::Walk;

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
