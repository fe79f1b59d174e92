//! Tests on a real Kubernetes. One cluster serves most of them; each works in a namespace of its
//! own. It needs `cargo xtask kubernetes`, and root.

mod held;
mod image;
mod install;
mod mesh;
mod nodes;
mod pods;
mod reboot;
mod shared;
mod upgrade;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, run};
use weft_tests::KubernetesOptions;

use shared::Shared;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !arguments.list && weft_tests::skipped_without_root() {
        return ExitCode::SUCCESS;
    }
    let cluster = Arc::new(Shared::new(KubernetesOptions::default().dns()));
    let trials = [
        pods::trials(&cluster),
        nodes::trials(&cluster),
        image::trials(&cluster),
        mesh::trials(&cluster),
        install::trials(&cluster),
    ];
    let conclusion = run(&arguments, trials.into_iter().flatten().collect());
    // The process ends without unwinding: what is made must be removed here.
    drop(cluster);
    conclusion.exit_code()
}
