//! Readers that have to be woken.
//!
//! When a direction goes over from redirection to TCP, its reader may hold redirected bytes with
//! bytes of TCP behind them. It gets the former first and alone, so a reader that is told of
//! changes once (edge-triggered epoll), and takes a short read to mean that it has read all,
//! waits for bytes that are there already. The agent runs `wake_readers` in the reader's network
//! namespace until it has read on.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::{
    bpf_getsockopt, bpf_probe_read_kernel, bpf_setsockopt, bpf_skc_to_tcp_sock,
};
use weft_common::{
    CONNECTION_FROM_PROXY, CONNECTION_TO_PROXY, Connection, ConnectionKey, Lagging, PodId,
};

use crate::connection;
use crate::maps::{LAGGING, LAGGING_NEWS, OFFSETS};
use crate::sk_msg::{field, written};

const SOL_SOCKET: i32 = 1;
const SO_RCVLOWAT: i32 = 18;

/// Remembers the reader of what an end sends. To be called by its sender, whose next byte is the
/// first that goes to TCP.
#[inline(never)]
pub fn remember(key: &ConnectionKey, record: *mut Connection, sender_low: bool) {
    let sender = connection::socket_at(record, sender_low);
    let reader = connection::socket_at(record, !sender_low);
    if sender == 0 || reader == 0 {
        return;
    }
    let Some(since) = written(sender) else { return };
    let pod = holder(record, connection::client_is_low(record) != sender_low);
    let lagging = Lagging { key: *key, pod, since, low: !sender_low as u32 };
    // There is room for as many as there may be connections.
    let _ = LAGGING.insert(&reader, &lagging, 0);
    let _ = LAGGING_NEWS.push(reader, 0);
    // It may have closed meanwhile; its close forgets what it finds.
    if connection::socket_at(record, !sender_low) == 0 {
        forget(reader);
    }
}

/// The pod that has an end, 0 for the proxy.
#[inline(always)]
fn holder(record: *mut Connection, client: bool) -> PodId {
    let flags = unsafe { (*record).flags };
    if client {
        if flags & CONNECTION_FROM_PROXY != 0 { 0 } else { unsafe { (*record).origin.pod } }
    } else if flags & CONNECTION_TO_PROXY != 0 {
        0
    } else {
        unsafe { (*record).server }
    }
}

/// A reader that has closed, or has read all.
#[inline(always)]
pub fn forget(reader: u64) {
    let _ = LAGGING.remove(&reader);
}

/// Whether a reader has read the first byte of TCP, and so all that was redirected before it. To
/// be called by its sender.
#[inline(always)]
pub fn has_passed(reader: u64) -> bool {
    let Some(lagging) = (unsafe { LAGGING.get(reader) }) else { return true };
    match field(reader, OFFSETS.load().copied_seq) {
        Some(read) => read.wrapping_sub(lagging.since) as i32 > 0,
        None => false,
    }
}

/// The kernel's `struct bpf_iter__tcp`.
#[repr(C)]
pub struct TcpIterator {
    meta: *mut c_void,
    socket: *mut c_void,
    uid: u32,
}

/// Wakes one reader: called for every TCP socket of a network namespace, with the socket locked.
///
/// With the socket locked nothing is redirected to it. So a reader that is found to have passed
/// `since` cannot be remembered anew before it is forgotten here: between the two, its sender
/// would have to forget it, and to redirect.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn wake_readers(context: *mut TcpIterator) -> i32 {
    let socket = unsafe { read_volatile(&raw const (*context).socket) };
    if !socket.is_null() {
        let socket = unsafe { bpf_skc_to_tcp_sock(socket) }.cast::<c_void>();
        if !socket.is_null() {
            wake_if_lagging(socket);
        }
    }
    0
}

#[inline(always)]
fn wake_if_lagging(socket: *mut c_void) {
    // The verifier takes a pointer for a number only where it was read.
    let Ok(own) = (unsafe { bpf_probe_read_kernel(&raw const socket) }) else { return };
    let own = own as u64;
    let Some(lagging) = (unsafe { LAGGING.get(own) }) else { return };
    let Some(record) = connection::find(&lagging.key) else { return };
    if connection::socket_at(record, lagging.low != 0) != own {
        return;
    }
    let offsets = OFFSETS.load();
    let (Some(read), Some(received)) =
        (field(own, offsets.copied_seq), field(own, offsets.rcv_nxt))
    else {
        return;
    };
    if read.wrapping_sub(lagging.since) as i32 > 0 {
        forget(own);
    } else if read != received {
        wake(socket);
    }
}

/// Sets the socket's low-water mark to what it is: the kernel then looks whether there is enough
/// to read, and if so tells the process.
#[inline(always)]
fn wake(socket: *mut c_void) {
    let mut mark = 0_i32;
    let value = (&raw mut mark).cast::<c_void>();
    let length = size_of::<i32>() as i32;
    unsafe {
        if bpf_getsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, value, length) == 0 {
            bpf_setsockopt(socket, SOL_SOCKET, SO_RCVLOWAT, value, length);
        }
    }
}
