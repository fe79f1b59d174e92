//! Flows: events of the kernel are kept as they come, in a ring, and get their names only when
//! somebody asks.

mod enrich;
mod filter;
mod ring;

#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;

pub use enrich::{Enricher, path_text, reason_text, rule};
pub use filter::{Filter, FilterError};
pub use ring::FlowRing;
