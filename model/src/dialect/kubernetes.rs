//! Kubernetes' own kinds.

mod enrolment;
mod network_policy;
mod schema;
mod service;
#[cfg(test)]
mod tests;
mod workload;

pub(super) use self::network_policy::{deny_fallback, network_policy};
pub(super) use self::service::{endpoint_slice, service};
pub(super) use self::workload::{
    ACCELERATE_ANNOTATION, MIRROR_ANNOTATION, namespace, node, pod, service_account,
};

use super::path::Path;
use super::reading::Reading;
use crate::mesh::Protocol;

/// `TCP`, `UDP` or `SCTP`, TCP if absent; reports another.
fn protocol(reading: &mut Reading<'_>, at: &Path, protocol: Option<&str>) -> Option<Protocol> {
    match protocol {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            reading.error(at, format_args!("\"{other}\" is none of TCP, UDP, SCTP"));
            None
        }
    }
}
