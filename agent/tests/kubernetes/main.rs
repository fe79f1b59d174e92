//! The agent's source of manifests, the definitions of kinds, and the status of objects, each test
//! on a real API server of its own. They need `cargo xtask kubernetes`, and root.

mod definitions;
mod follow;
mod server;
mod status;
