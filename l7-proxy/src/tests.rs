//! Pairs of proxies.

mod support;
mod tunnels;
