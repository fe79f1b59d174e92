//! The certificate authority against a real API server: `weft ca` as a process, with the rights
//! that the chart gives it, and the agent's side of it. `WEFT_TEST_KUBECONFIG` names an
//! administrator's kubeconfig; nodes and kubelets are not needed.

mod fixture;
mod issuing;
mod publishing;
mod rotation;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial, run};

use fixture::Shared;

const KUBECONFIG: &str = "WEFT_TEST_KUBECONFIG";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Some(kubeconfig) = std::env::var_os(KUBECONFIG) else {
        eprintln!("skipped: {KUBECONFIG} names no kubeconfig of an API server to test on");
        return ExitCode::SUCCESS;
    };
    let shared = Arc::new(Shared::new(kubeconfig.into()));
    let trials: Vec<Trial> =
        [issuing::trials(&shared), publishing::trials(&shared), rotation::trials(&shared)]
            .into_iter()
            .flatten()
            .collect();
    run(&arguments, trials).exit_code()
}
