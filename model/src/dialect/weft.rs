//! Weft's own kinds (`weft.dev/v1alpha1`). A MeshPolicy is shaped as a CiliumNetworkPolicy, and is
//! read as one; it names peers by their identities too, and has rules for HTTP.

mod policy;
mod schema;
mod settings;
#[cfg(test)]
mod tests;

pub(super) use self::policy::policy;
pub(super) use self::settings::{settings, settings_fallback};
