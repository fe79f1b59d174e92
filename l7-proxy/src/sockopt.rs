//! Socket options that no library knows: the two of Weft's eBPF programs, and one that TCP
//! answers in a way of its own.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use weft_common::{Origin, ProvenSource, SO_WEFT_ORIGIN, SO_WEFT_SOURCE};

/// `getsockopt(SOL_IP, SO_WEFT_ORIGIN)`.
///
/// # Errors
/// The kernel's, if there is no record for the connection (or no program that answers), and
/// `InvalidData` if the answer has another size.
pub(crate) fn origin(socket: BorrowedFd<'_>) -> io::Result<Origin> {
    let mut origin = Origin::default();
    let mut length = size_of::<Origin>() as libc::socklen_t;
    // SAFETY: `Origin` is plain bytes for which every pattern is a value, the pointer and the
    // length describe it, and it outlives the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            SO_WEFT_ORIGIN,
            (&raw mut origin).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != size_of::<Origin>() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the record of the connection has {length} bytes, not those of this version"),
        ));
    }
    Ok(origin)
}

/// `setsockopt(SOL_IP, SO_WEFT_SOURCE)`.
///
/// # Errors
/// The kernel's; also if no program takes the option.
pub(crate) fn set_source(socket: BorrowedFd<'_>, source: &ProvenSource) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `source`, which outlives the call and has no
    // padding.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            SO_WEFT_SOURCE,
            std::ptr::from_ref(source).cast(),
            size_of::<ProvenSource>() as libc::socklen_t,
        )
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has TCP tell (epoll) again of bytes that it holds for the socket, if there are any: setting
/// SO_RCVLOWAT does, and 1 is what it is anyway.
pub(crate) fn tell_if_readable(socket: RawFd) {
    let low: libc::c_int = 1;
    // SAFETY: the pointer and the length describe `low`, which outlives the call.
    let _failed = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const low).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}
