//! The compiled tables, looked up as the eBPF programs do, say what the reference evaluator
//! says: over generated meshes, policies and connections. `WEFT_SEED` chooses others.

mod check;
mod compare;
mod generate;
mod shrink;
mod steps;
mod walk;

use std::collections::BTreeMap;

use compare::{Lookups, compare, compare_services, compile};
use generate::Generator;
use shrink::shrink;

const CONNECTIONS: usize = 2_000_000;
const PER_MESH: usize = 2_000;

/// How many connections had which reason, by its number.
type Reasons = BTreeMap<u32, usize>;

/// The seed of this run.
pub fn seed() -> u64 {
    std::env::var("WEFT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260)
}

#[test]
fn tables_say_what_the_evaluator_says() {
    let seed = seed();
    println!("WEFT_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let each = CONNECTIONS.div_ceil(threads);
    let reasons: Vec<Reasons> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(seed, thread as u64, each)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let mut all = Reasons::new();
    for (reason, count) in reasons.into_iter().flatten() {
        *all.entry(reason).or_default() += count;
    }
    let compared: usize = all.values().sum();
    println!("by reason: {all:?}");
    println!("{compared} connections compared, 0 differences");
    assert!(compared >= CONNECTIONS);
    // A comparison in which some reason hardly comes says nothing about it.
    for reason in reasons_of_policy() {
        let count = all.get(&reason).copied().unwrap_or(0);
        assert!(count >= CONNECTIONS / 1000, "reason {reason} came {count} times");
    }
}

/// The reasons that policy can give.
fn reasons_of_policy() -> [u32; 8] {
    use weft_common::Reason::*;
    [Unrestricted, Rule, OwnNode, RuleDenies, NoRule, NotProven, NeedsHttp, Unsupported]
        .map(|reason| reason as u32)
}

#[test]
fn services_have_the_backends_that_the_evaluator_says() {
    let mut served = 0;
    for round in 0..400 {
        let mut generator = Generator::seeded(seed() ^ round << 24);
        let mesh = generator.mesh();
        match compare_services(&mesh, &compile(&mesh)) {
            Ok(some) => served += some,
            Err(difference) => panic!("WEFT_SEED={}: {difference}\nin {mesh:#?}", seed()),
        }
    }
    println!("{served} addresses and ports with a backend, 0 differences");
    assert!(served >= 2_000);
}

fn run(seed: u64, thread: u64, wanted: usize) -> Reasons {
    let mut reasons = Reasons::new();
    let mut compared = 0;
    let mut round = 0;
    while compared < wanted {
        let mesh_seed = seed.wrapping_mul(1_000_003) ^ thread << 40 ^ round;
        round += 1;
        let mut generator = Generator::seeded(mesh_seed);
        let mesh = generator.mesh();
        let cluster = compile(&mesh);
        let lookups = Lookups::of(&cluster);
        for _ in 0..PER_MESH {
            let connection = generator.connection(&mesh);
            match compare(&mesh, &lookups, &connection) {
                None => {}
                Some(Ok(outcome)) => {
                    compared += 1;
                    *reasons.entry(outcome.reason as u32).or_default() += 1;
                }
                Some(Err(difference)) => {
                    let (mesh, smallest) = shrink(mesh, &connection);
                    let difference = smallest.unwrap_or(difference);
                    panic!("WEFT_SEED={seed}: {difference}\nin {mesh:#?}");
                }
            }
        }
    }
    reasons
}
