use std::process::ExitCode;

use super::output::print;
use crate::kernel;

/// Mounts a BPF file system at its usual place, where there is none.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    let mounted = kernel::mount_bpf_file_system()?;
    print(if mounted { "mounted" } else { "there is a BPF file system already" })?;
    Ok(ExitCode::SUCCESS)
}
