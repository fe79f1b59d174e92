//! Doing something inside another process's network namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The network namespace of a process.
pub(super) fn of_process(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(PathBuf::from(format!("/proc/{pid}/ns/net")))?.into())
}

/// Runs `work` in the network namespace, on a thread that ends with it: no other thread of the
/// agent ever leaves its namespace.
pub(super) fn inside<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pod-namespace".to_owned()).spawn_scoped(
            scope,
            || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            },
        )?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    })
}
