use std::io;
use std::os::fd::BorrowedFd;

use weft_common::{Origin, ProvenSource};

use crate::sockopt;

/// What the kernel and the proxy tell each other about a connection.
pub trait Attestation: Send + Sync + 'static {
    /// What the kernel attests about an accepted connection of a pod.
    ///
    /// # Errors
    /// There is no record of the connection: it must be refused.
    fn origin(&self, socket: BorrowedFd<'_>) -> io::Result<Origin>;

    /// Tells the kernel, before `connect`, for whom the proxy connects to a pod.
    ///
    /// # Errors
    /// The kernel did not take it: the connection must not be made.
    fn set_source(&self, socket: BorrowedFd<'_>, source: &ProvenSource) -> io::Result<()>;
}

/// Attestation by Weft's eBPF programs, through socket options.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Attestation for Kernel {
    fn origin(&self, socket: BorrowedFd<'_>) -> io::Result<Origin> {
        sockopt::origin(socket)
    }

    fn set_source(&self, socket: BorrowedFd<'_>, source: &ProvenSource) -> io::Result<()> {
        sockopt::set_source(socket, source)
    }
}
