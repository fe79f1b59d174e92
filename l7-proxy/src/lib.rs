//! The node proxy: it carries the connections of a node's pods to other nodes in mTLS HTTP/2
//! tunnels (HBONE), and takes theirs.
//!
//! A process of its own, under its own user, without capabilities. The agent tells it what it
//! needs over gRPC on a Unix socket ([`agent`](crate::Options::agent_socket)); the kernel tells it
//! who opened a connection ([`Attestation`]). L4 policy is not decided here but in the kernel: the
//! proxy proves who the peer is, says so to the kernel, and connects.
//!
//! Each worker thread is a runtime of its own with its own listeners (`SO_REUSEPORT`), tunnels and
//! upstream connections, and reads an immutable snapshot of the configuration; gRPC lives on
//! another thread.
#![deny(unsafe_code)]

mod agent;
mod attestation;
mod bounds;
mod forwarded;
mod identity;
mod inbound;
mod listener;
mod outbound;
mod privileges;
mod proxy;
mod reading;
mod relay;
mod snapshot;
mod sockopt;
mod tls;
mod tunnel;
mod worker;

pub use attestation::{Attestation, Kernel};
pub use bounds::Limits;
pub use identity::{InvalidIdentity, SpiffeId};
pub use privileges::{User, drop_privileges, raise_open_files};
pub use proxy::{Options, Proxy};

#[cfg(test)]
mod tests;
