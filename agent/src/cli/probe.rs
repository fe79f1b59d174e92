//! What a kubelet asks of the agent's container.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use weft_proto::v1::StatusRequest;

use super::client::{ClientArgs, answer, block_on};
use crate::agent::ready_file;

/// How long the agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

#[derive(Debug, Args)]
pub(super) struct ProbeArgs {
    #[command(subcommand)]
    probe: Probe,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Probe {
    /// A policy is in force, and the agent answers
    Ready,
    /// The agent answers
    Live,
}

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    if let Probe::Ready = args.probe {
        let marker = ready_file(&args.client.run_dir);
        fs::metadata(&marker).with_context(|| {
            format!("no policy has been applied yet ({} is not there)", marker.display())
        })?;
    }
    block_on(async {
        tokio::time::timeout(ANSWER_WITHIN, async {
            args.client.observer().await?.status(StatusRequest {}).await.map_err(answer)
        })
        .await
        .context("the agent does not answer in time")?
    })?;
    Ok(ExitCode::SUCCESS)
}
