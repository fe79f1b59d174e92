//! `cargo xtask image`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use weft_tests::image::{Compression, write_archive};
use weft_tests::kubernetes::weft_image;

use crate::artifacts;
use crate::repository::target;
use crate::steps::Steps;

/// What the chart asks for.
const DEFAULT_TAG: &str = concat!("weft.dev/weft:", env!("CARGO_PKG_VERSION"));

/// `cargo xtask image`
#[derive(Args)]
pub struct Arguments {
    /// The image's full name.
    #[arg(long, default_value = DEFAULT_TAG)]
    tag: String,
    /// The archive [default: target/weft-image.tar].
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Builds the programs, and writes the archive.
///
/// # Errors
/// A build that fails, or an archive that cannot be written.
pub fn run(steps: &mut Steps, arguments: &Arguments) -> Result<()> {
    artifacts::build(steps)?;
    let output = arguments.output.clone().unwrap_or_else(|| target().join("weft-image.tar"));
    write(steps, &arguments.tag, &output)?;
    let megabytes = fs::metadata(&output)?.len() / 1_000_000;
    println!(
        "{} is in {} ({megabytes} MB). Bring it to where pods run:\n\n  \
         ctr --namespace k8s.io images import {archive}\n  \
         docker load --input {archive}\n  \
         kind load image-archive {archive}",
        arguments.tag,
        output.display(),
        archive = output.display(),
    );
    Ok(())
}

/// Writes the image of what has been built.
pub fn write(steps: &mut Steps, tag: &str, output: &Path) -> Result<()> {
    steps.during(&format!("write the image {tag}"), |_| {
        let folder = target().join("xtask/image");
        fs::create_dir_all(&folder)?;
        for program in ["weft", "weft-proxy"] {
            strip(&artifacts::folder().join(program), &folder.join(program))?;
        }
        write_archive(output, &[weft_image(tag, &folder)?], Compression::Gzip)
    })
}

/// Leaves what names functions in a backtrace, and takes lines and files away.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(program).status();
    let status = status.context("cannot run strip: install binutils")?;
    anyhow::ensure!(status.success(), "strip {} failed", program.display());
    Ok(())
}
