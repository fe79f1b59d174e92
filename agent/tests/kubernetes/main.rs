//! The agent's source of manifests, the definitions of kinds, and the status of objects on a real
//! API server.
//!
//! The tests are ignored where Kubernetes has not been built: `cargo xtask test` builds it and runs
//! them. `WEFT_TEST_KUBECONFIG` names an API server of one's own to use instead.

mod definitions;
mod follow;
mod load;
mod scale;
mod server;
mod status;
