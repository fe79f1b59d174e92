//! The compiled tables, looked up as the eBPF programs do, say what the reference evaluator
//! says: over generated meshes, policies and connections. `WEFT_SEED` chooses others.

mod compare;
mod generate;

use compare::{Lookups, compare, compile};
use generate::Generator;

const CONNECTIONS: usize = 1_000_000;
const PER_MESH: usize = 2_000;

fn seed() -> u64 {
    std::env::var("WEFT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260)
}

#[test]
fn tables_say_what_the_evaluator_says() {
    let seed = seed();
    println!("WEFT_SEED={seed}");
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let each = CONNECTIONS.div_ceil(threads);
    let compared: usize = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(seed, thread as u64, each)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).sum()
    });
    println!("{compared} connections compared, 0 differences");
    assert!(compared >= CONNECTIONS);
}

fn run(seed: u64, thread: u64, wanted: usize) -> usize {
    let mut compared = 0;
    for round in 0.. {
        let mesh_seed = seed.wrapping_mul(1_000_003) ^ thread << 40 ^ round;
        let mut generator = Generator::seeded(mesh_seed);
        let mesh = generator.mesh();
        let cluster = compile(&mesh);
        let lookups = Lookups::of(&cluster);
        for _ in 0..PER_MESH {
            let connection = generator.connection(&mesh);
            match compare(&mesh, &lookups, &connection) {
                None => {}
                Some(Ok(())) => compared += 1,
                Some(Err(difference)) => {
                    panic!("WEFT_SEED={seed}, mesh {mesh_seed}: {difference}")
                }
            }
        }
        if compared >= wanted {
            break;
        }
    }
    compared
}
