//! `weft-proxy`: see the library.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;
use weft_proxy::{Kernel, Limits, Options, Proxy, User, drop_privileges, raise_open_files};

/// Weft's node proxy: mTLS tunnels between nodes, for the node's pods.
#[derive(Parser)]
#[command(name = "weft-proxy", version)]
struct Arguments {
    /// Unix socket on which the node's agent serves the proxy's configuration.
    #[arg(long, value_name = "PATH", env = "WEFT_AGENT_SOCKET")]
    agent_socket: PathBuf,
    /// User, and group if another number, to run as where started as root.
    #[arg(long, value_name = "UID[:GID]", default_value = "65534")]
    user: User,
    /// Worker threads. Default: one per CPU.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Connections that one pod may have open through the proxy, in each direction.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections_per_pod)]
    connections_per_pod: usize,
    /// Format of the log on standard error. Its level is set by WEFT_LOG or RUST_LOG.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.log_format)?;
    // Before any thread exists: credentials and capabilities belong to threads.
    let open_files = raise_open_files();
    drop_privileges(arguments.user)?;

    let threads = match arguments.threads {
        Some(0) => anyhow::bail!("--threads: must be at least 1"),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let limits = Limits {
        connections_per_pod: per_pod(arguments.connections_per_pod, open_files),
        ..Limits::default()
    };
    let options = Options { agent_socket: arguments.agent_socket, threads, limits };
    let mut proxy = Proxy::start(options, Kernel)?;
    proxy.run_until_signal().context("the proxy")
}

/// What a pod may have open: never so much that a few pods could use up the files of all.
fn per_pod(wanted: usize, open_files: u64) -> usize {
    let share = usize::try_from(open_files / 8).unwrap_or(usize::MAX).max(1);
    if wanted > share {
        tracing::warn!(
            wanted,
            share,
            open_files,
            "--connections-per-pod: reduced to an eighth of the files that the proxy may open"
        );
    }
    wanted.min(share)
}

fn log_to_stderr(format: LogFormat) -> anyhow::Result<()> {
    let filter = match std::env::var("WEFT_LOG").or_else(|_| std::env::var("RUST_LOG")) {
        Ok(directives) => EnvFilter::try_new(&directives)
            .with_context(|| format!("WEFT_LOG or RUST_LOG: {directives:?}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
