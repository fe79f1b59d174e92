use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::print;
use crate::agent::PIN_DIR;
use crate::kernel::Kernel;

#[derive(Debug, Args)]
pub(super) struct UninstallArgs {
    /// Where programs and maps are pinned
    #[arg(long, env = "WEFT_PIN_DIR", default_value = PIN_DIR, value_name = "DIR")]
    pin_dir: PathBuf,
}

pub(super) fn run(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    Kernel::remove(&args.pin_dir)?;
    print(format_args!(
        "nothing of Weft is left in the kernel (pins below {})",
        args.pin_dir.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
