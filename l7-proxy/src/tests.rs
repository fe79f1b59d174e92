//! Pairs of proxies.

mod connections;
mod refusals;
mod support;
mod tunnels;
