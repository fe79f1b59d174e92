//! Talking with the agent on this node.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1::observer_client::ObserverClient;

/// Which agent.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientArgs {
    /// Where the agent has its sockets
    #[arg(long, env = "WEFT_RUN_DIR", default_value = crate::agent::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
}

impl ClientArgs {
    /// Connects to the agent.
    pub(super) async fn observer(&self) -> anyhow::Result<ObserverClient<Channel>> {
        let socket = crate::agent::observer_socket(&self.run_dir);
        let channel = connect(&socket).await.with_context(|| {
            format!(
                "no agent answers at {}: is `weft agent` running, with this --run-dir, and are \
                 you root?",
                socket.display()
            )
        })?;
        Ok(ObserverClient::new(channel).max_decoding_message_size(64 << 20))
    }
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let uri = format!("unix://{}", std::path::absolute(socket)?.display());
    Ok(Endpoint::from_shared(uri)?.connect().await?)
}

/// The agent's own words, without gRPC's around them.
pub(super) fn answer(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// Runs a command that waits for the agent.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("runtime")?
        .block_on(future)
}
