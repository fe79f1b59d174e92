//! Types that both sides of a BPF map share, and the decision that is taken on them.
//!
//! Everything here is `#[repr(C)]` without implicit padding, so that the bytes in a map are
//! defined. [`LAYOUT_VERSION`] names the layout; an agent adopts pinned maps only of its own.
//! [`judge`] is the one implementation of the policy lookup, and [`Between`] that of the judgement
//! of both ends: the eBPF programs run them over kernel maps, the tests of `weft-model` over the same
//! tables in memory.
#![no_std]

mod address;
mod between;
mod connection;
mod datagram;
mod flow;
mod judge;
mod mesh;
mod service;
mod socket;
mod usage;

pub use address::*;
pub use between::*;
pub use connection::*;
pub use datagram::*;
pub use flow::*;
pub use judge::*;
pub use mesh::*;
pub use service::*;
pub use socket::*;
pub use usage::*;

/// Changes whenever the meaning or layout of a type or map changes.
pub const LAYOUT_VERSION: u32 = 1;

/// Marks types as plain bytes for aya.
macro_rules! pod {
    ($($t:ty),* $(,)?) => {
        $(
            #[cfg(feature = "user")]
            // SAFETY: `repr(C)`, without padding, and every bit pattern is a value.
            unsafe impl aya::Pod for $t {}
        )*
    };
}
pub(crate) use pod;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;
