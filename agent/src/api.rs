//! What the agent serves on Unix sockets: configuration to the node's proxy, and flows, status
//! and explanations to tools.

mod observer;
mod proxy;
mod socket;

#[cfg(test)]
mod tests;

pub use observer::{Ask, ObserverService};
pub use proxy::{ProxyPorts, ProxyService, ProxyState};
pub use socket::{Allowed, Listener};
