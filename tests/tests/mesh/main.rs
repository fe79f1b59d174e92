//! The mesh, end to end: agents and proxies on a test cluster, real processes, real traffic.

mod agent;
mod applications;
mod bad_input;
mod hostile;
mod paths;
mod policy;
mod shop;
