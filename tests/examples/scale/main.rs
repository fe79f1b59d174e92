//! What many objects in an API server cost the agents: `cargo xtask scale` builds what this needs
//! and runs it. Two nodes of the test cluster have agents with eBPF and pods with processes; the
//! other pods, services and policies are objects alone. Prints figures, and judges none.

mod load;
mod policies;
mod services;
mod stage;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
enum Arguments {
    /// From the change of a policy to its effect on new connections on both nodes.
    Policies(policies::Options),
    /// Time to sync, memory, CPU at rest, and the cost of `connect()`, with many services.
    Services(services::Options),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse() {
        Arguments::Policies(options) => policies::run(&options).await,
        Arguments::Services(options) => services::run(&options).await,
    }
}
