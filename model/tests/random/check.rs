//! The comparison itself is checked: deliberate errors in the tables are found.

use weft_common::{ADDRESS_HOST, Decision, PortKey, Reason, judge};
use weft_model::compile::{Lookup, Tables};

use crate::compare::{Cluster, Lookups, compare, compile};
use crate::generate::Generator;
use crate::seed;

const MESHES: u64 = 40;
const PER_MESH: usize = 20_000;

/// In how many of the meshes that an error could be seeded in it is found.
fn found(error: impl Fn(&mut Tables, &mut Generator) -> bool) -> (usize, usize) {
    let mut seeded = 0;
    let mut found = 0;
    for round in 0..MESHES {
        let mut generator = Generator::seeded(seed() ^ round << 20);
        let mesh = generator.mesh();
        let mut cluster: Cluster = compile(&mesh);
        let mut any = false;
        for tables in cluster.values_mut() {
            any |= error(tables, &mut generator);
        }
        if !any {
            continue;
        }
        seeded += 1;
        let lookups = Lookups::of(&cluster);
        let differs = (0..PER_MESH).any(|_| {
            let connection = generator.connection(&mesh);
            compare(&mesh, &lookups, &connection).is_some_and(|result| result.is_err())
        });
        found += usize::from(differs);
    }
    (found, seeded)
}

fn assert_found(what: &str, least: f64, error: impl Fn(&mut Tables, &mut Generator) -> bool) {
    let (found, seeded) = found(error);
    println!("{what}: found in {found} of {seeded} meshes");
    assert!(seeded >= 5, "{what}: could be seeded in {seeded} meshes only");
    assert!(found as f64 >= seeded as f64 * least, "{what}: found in {found} of {seeded} meshes");
}

#[test]
fn a_wrong_decision_is_found() {
    assert_found("port tables that allow where they deny", 0.8, |tables, _| {
        let mut changed = false;
        for decision in tables.ports.values_mut().filter(|decision| !decision.allows()) {
            *decision = Decision::because(Reason::Unrestricted);
            changed = true;
        }
        changed
    });
}

#[test]
fn a_wrong_rule_is_found() {
    assert_found("decisions that name no rule", 0.8, |tables, _| {
        let mut changed = false;
        let of_policy = tables.policy.values_mut().map(|entry| &mut entry.decision);
        for decision in of_policy.chain(tables.ports.values_mut()) {
            changed |= decision.rule != 0;
            decision.rule = 0;
        }
        changed
    });
}

#[test]
fn a_missing_class_is_found() {
    // Nobody can ask a pod that has no address, and few ask for a single port of a single pod.
    assert_found("entries of classes left out", 0.8, |tables, _| {
        let before = tables.policy.len();
        tables.policy.retain(|(_, peer), _| *peer < 2);
        tables.policy.len() != before
    });
}

/// An entry of a class is there only if it is looked up and says what the one for all classes
/// does not: each takes memory in the kernel, and time when it is written.
#[test]
fn every_entry_says_something() {
    let mut entries = 0;
    for round in 0..MESHES {
        let mesh = Generator::seeded(seed() ^ round << 20).mesh();
        for tables in compile(&mesh).values() {
            let lookup = Lookup::of(tables);
            for (subject, peer) in tables.policy.keys().filter(|(_, peer)| *peer >= 2) {
                let (class, proven) = (peer >> 1, peer & 1 == 1);
                let pods = || tables.pods.values().map(|pod| pod.entry);
                let is_ingress = pods().any(|pod| pod.ingress_subject == *subject);
                let is_egress = pods().any(|pod| pod.egress_subject == *subject && !proven);
                let is_met = tables.addresses.values().any(|entry| {
                    let judged = is_egress || is_ingress && entry.flags & ADDRESS_HOST == 0;
                    entry.class == class && judged
                });
                let differs = ports(tables).any(|(protocol, port)| {
                    judge(&lookup, *subject, class, proven, protocol, port)
                        != judge(&lookup, *subject, 0, proven, protocol, port)
                });
                assert!(
                    is_met && differs,
                    "WEFT_SEED={}, mesh {round}: subject {subject}, class {class}, proven: \
                     {proven}; looked up: {is_met}, differs: {differs}",
                    seed()
                );
                entries += 1;
            }
        }
    }
    println!("{entries} entries, each says something");
    assert!(entries > 100);
}

/// Protocols and ports at which a decision may change.
fn ports(tables: &Tables) -> impl Iterator<Item = (u8, u16)> {
    let changes = |(bits, key): &(u8, PortKey)| {
        let first = u16::from_be_bytes(key.port);
        let wide = u16::MAX.checked_shr(u32::from(bits.saturating_sub(40))).unwrap_or(0);
        [(key.protocol, first), (key.protocol, first.wrapping_add(wide).wrapping_add(1))]
    };
    [(6, 0)].into_iter().chain(tables.ports.keys().flat_map(changes))
}

#[test]
fn one_wrong_boundary_is_found() {
    assert_found("one prefix of addresses left out", 0.3, |tables, generator| {
        let inner: Vec<_> =
            tables.addresses.keys().copied().filter(|(length, _)| *length > 96).collect();
        if inner.is_empty() {
            return false;
        }
        tables.addresses.remove(generator.of(&inner)).is_some()
    });
}

#[test]
fn one_wrong_port_is_found() {
    assert_found("one prefix of ports left out", 0.3, |tables, generator| {
        let some: Vec<_> = tables.ports.keys().copied().filter(|(bits, _)| *bits > 32).collect();
        if some.is_empty() {
            return false;
        }
        tables.ports.remove(generator.of(&some)).is_some()
    });
}
