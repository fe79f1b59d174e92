//! Configuration from the node's agent: gRPC on a Unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tonic::transport::{Channel, Endpoint};
use weft_proto::v1::WatchRequest;
use weft_proto::v1::proxy_config_client::ProxyConfigClient;

use crate::proxy::Shared;
use crate::snapshot::Configuration;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);
/// Looking for a socket costs nothing, and an agent that has just come has what connections wait for.
const LOOK: Duration = Duration::from_millis(50);
/// A first update may hold thousands of workloads.
const MAX_MESSAGE: usize = 256 << 20;

/// Follows the agent for ever. While it is away the last snapshot stays in force.
pub(crate) async fn follow(socket: PathBuf, shared: std::sync::Arc<Shared>) {
    let mut known = Configuration::default();
    let mut retry = FIRST_RETRY;
    let mut reported = String::new();
    loop {
        let synced = known.synced();
        let mut received = false;
        let (ended, wait) = match connect(&socket).await {
            Ok(agent) => {
                let ended = watch(agent, &shared, &mut known, &mut received).await;
                retry = if received { FIRST_RETRY } else { (retry * 2).min(LAST_RETRY) };
                (ended, retry)
            }
            Err(error) => (Err(error), LOOK),
        };
        let ended = match ended {
            Ok(()) => "it ended the stream".to_owned(),
            // What stands between the two repeats the cause.
            Err(error) => format!("{error}: {}", error.root_cause()),
        };
        if ended == reported && !received {
            tracing::trace!(reason = ended, "still no agent");
        } else if synced || received {
            tracing::warn!(reason = ended, "the agent is away; its last configuration stays");
        } else {
            tracing::info!(reason = ended, "waiting for the agent");
        }
        reported = ended;
        tokio::time::sleep(wait).await;
    }
}

async fn connect(socket: &Path) -> Result<Channel> {
    let path = socket.to_str().context("the path of the agent's socket is not UTF-8")?;
    let agent = Endpoint::from_shared(format!("unix:{path}")).context("the agent's socket")?;
    agent.connect().await.with_context(|| format!("cannot connect to the agent at {path}"))
}

/// Applies one stream of updates until it ends. `known` is what the last synced stream left;
/// a new one begins from nothing and takes its place once it is complete.
async fn watch(
    agent: Channel,
    shared: &Shared,
    known: &mut Configuration,
    received: &mut bool,
) -> Result<()> {
    let mut client = ProxyConfigClient::new(agent).max_decoding_message_size(MAX_MESSAGE);
    let request = WatchRequest { version: env!("CARGO_PKG_VERSION").to_owned() };
    let mut updates = client.watch(request).await.context("Watch")?.into_inner();

    let mut next = Some(Configuration::default());
    while let Some(update) = updates.message().await.context("Watch")? {
        *received = true;
        let target = next.as_mut().unwrap_or(known);
        for problem in target.apply(update) {
            tracing::error!(problem = format!("{problem:#}"), "not usable, left out");
        }
        if let Some(mut complete) = next.take_if(|next| next.synced()) {
            complete.succeed(known);
            *known = complete;
        }
        if next.is_none() {
            shared.publish(known.snapshot());
        }
    }
    Ok(())
}
