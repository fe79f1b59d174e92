//! The certificate authority against a real API server: `weft ca` as a process, with the rights
//! that the chart gives it, and the agent's side of it. They need `cargo xtask kubernetes`, and
//! root.

mod fixture;
mod issuing;
mod publishing;
mod rotation;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial, run};

use fixture::Shared;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let shared = Arc::new(Shared::default());
    let trials: Vec<Trial> =
        [issuing::trials(&shared), publishing::trials(&shared), rotation::trials(&shared)]
            .into_iter()
            .flatten()
            .collect();
    let conclusion = run(&arguments, trials);
    // The process ends without unwinding: what is made must be removed here.
    drop(shared);
    conclusion.exit_code()
}
