//! The node agent and the `weft` command line.
//!
//! One direction only: [`source`] reads manifests, `weft_model::dialect` turns them into a mesh,
//! `weft_model::compile` compiles it for this node, [`reconcile`] brings the tables into the
//! kernel ([`kernel`]) and tells the proxy and the tools what is in force.

pub mod agent;
pub mod api;
pub mod ca;
pub mod cli;
pub mod conditions;
pub mod crd;
pub mod explain;
pub mod flows;
pub mod identity;
pub mod kernel;
pub mod reconcile;
pub mod snapshot;
pub mod source;
