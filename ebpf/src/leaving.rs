//! Sockets leave the SOCKHASH when Weft is removed: while they are in it, they hold the program
//! `redirect`, and it holds its maps.
//!
//! The kernel drops what a socket has not read of redirected bytes when it leaves. So the agent
//! turns acceleration off first, and what comes then goes to TCP. It runs `leave_sockets` again and
//! again, which takes out those that have read what was redirected to them.

use core::ffi::c_void;
use core::ptr::{self, read_volatile};

use aya_ebpf::helpers::{bpf_map_delete_elem, bpf_probe_read_kernel};
use weft_common::SocketKey;

use crate::connection;
use crate::maps::SOCKETS;
use crate::sk_msg;

/// The kernel's `struct bpf_iter__sockmap`.
#[repr(C)]
pub struct SocketsIterator {
    meta: *mut c_void,
    map: *mut c_void,
    key: *const SocketKey,
    socket: *mut c_void,
}

/// Called for every socket of the SOCKHASH, and once without one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/sockmap")]
pub extern "C" fn leave_sockets(context: *mut SocketsIterator) -> i32 {
    let key = unsafe { read_volatile(&raw const (*context).key) };
    let socket = unsafe { read_volatile(&raw const (*context).socket) };
    if key.is_null() || socket.is_null() {
        return 0;
    }
    let key = unsafe { *key };
    // The verifier takes a pointer for a number only where it was read.
    let Ok(own) = (unsafe { bpf_probe_read_kernel(&raw const socket) }) else { return 0 };
    if may_leave(&key, own as u64) {
        leave(&key);
    }
    0
}

/// Whether a socket loses nothing. Its own bytes go to TCP when it has left, and no program says so
/// any more: so where they were redirected to the very last, they have to be read before.
#[inline(never)]
fn may_leave(key: &SocketKey, own: u64) -> bool {
    let (connection, low) = key.connection();
    let Some(record) = connection::find(&connection) else {
        return sk_msg::has_nothing_unread(own);
    };
    if connection::socket_at(record, low) != own {
        return sk_msg::has_nothing_unread(own);
    }
    let told = sk_msg::is_held(record, low)
        || connection::socket_at(record, !low) == 0
        || sk_msg::end_redirection(&connection, record, low);
    told && sk_msg::end_redirection(&connection, record, !low)
}

/// Takes a socket out of the SOCKHASH.
#[inline(always)]
pub fn leave(key: &SocketKey) {
    let sockets = ptr::from_ref(&SOCKETS).cast_mut().cast::<c_void>();
    unsafe { bpf_map_delete_elem(sockets, ptr::from_ref(key).cast()) };
}
