//! Finds the compiled eBPF programs, which the agent carries inside itself.

use std::path::PathBuf;
use std::process::ExitCode;

const VARIABLE: &str = "WEFT_BPF_OBJECT";
const BUILT: &str = "../ebpf/target/bpfel-unknown-none/release/weft-ebpf";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let object = std::env::var_os(VARIABLE).map_or_else(
        || PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(BUILT),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    // `weft install` carries the chart inside itself.
    println!("cargo::rerun-if-changed=../charts/weft");
    match object.canonicalize() {
        Ok(object) => {
            println!("cargo::rustc-env=WEFT_EMBEDDED_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!(
                "cargo::error=the eBPF programs are not built ({}: {error}): \
                 run `cargo xtask build`",
                object.display()
            );
            ExitCode::FAILURE
        }
    }
}
