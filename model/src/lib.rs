//! The mesh as a value. Manifests of every dialect are read ([`dialect`]) into one
//! [`mesh::Mesh`]; the mesh is compiled ([`compile`]) for one node into kernel tables. What the
//! tables must say is defined by the reference evaluator ([`evaluate`]).
//!
//! Pure: no I/O, no async, no clock.
#![forbid(unsafe_code)]

pub mod compile;
pub mod dialect;
pub mod evaluate;
pub mod mesh;
