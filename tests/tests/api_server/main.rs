//! The mesh while what it depends on fails: its API server, its authority, its agents. Objects are
//! in a real API server; nodes and pods are the test cluster's. They need
//! `cargo xtask kubernetes`, and root.

mod authority;
mod kills;
mod server;
mod settings;
mod town;
