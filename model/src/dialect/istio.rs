//! Istio's policies.
use super::reading::Reading;
use crate::mesh::Resource;
pub(super) fn authorization(_: &mut Reading<'_>) -> Option<Resource> { None }
pub(super) fn peer_authentication(_: &mut Reading<'_>) -> Option<Resource> { None }
pub(super) fn authorization_fallback(_: &mut Reading<'_>) -> Option<Vec<Resource>> { None }
pub(super) fn peer_authentication_fallback(_: &mut Reading<'_>) -> Vec<Resource> { Vec::new() }
