//! The agent's kernel side on the real kernel. Needs root.
//!
//! Each test has cgroups, pins and namespaces of its own, and removes them when it ends, also by
//! a panic.

mod adoption;
mod connections;
mod fixture;
mod node;
mod removal;
mod tables;
