//! Established connections, after a change of policy.
//!
//! The agent runs `judge_connections` over `CONNECTIONS`, and reads what it writes: which
//! connections it has judged, and which are to be cut.

use core::ffi::c_void;
use core::ptr::{self, read_volatile};

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::bpf_seq_write;
use weft_common::{CONNECTION_CUT, Connection, ConnectionKey, Judged};

use crate::connection;
use crate::tables;

/// The kernel's `struct bpf_iter_meta`, as far as it is looked at.
#[repr(C)]
struct Meta {
    output: *mut seq_file,
}

/// The kernel's `struct bpf_iter__bpf_map_elem`.
#[repr(C)]
pub struct MapIterator {
    meta: *mut Meta,
    map: *mut c_void,
    key: *const ConnectionKey,
    value: *mut Connection,
}

/// Called for every record, and once without one. Also those that are allowed are written: so the
/// agent's read, which returns when much has been written, takes a bounded time.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map_elem")]
pub extern "C" fn judge_connections(context: *mut MapIterator) -> i32 {
    let key = unsafe { read_volatile(&raw const (*context).key) };
    if key.is_null() {
        return 0;
    }
    let output = unsafe { read_volatile(&raw const (*(*context).meta).output) };
    judge(output, &unsafe { *key });
    0
}

#[inline(always)]
fn judge(output: *mut seq_file, key: &ConnectionKey) {
    let (Some(config), Some(record)) = (tables::config(), connection::find(key)) else { return };
    // What is just being filled in is under the generation that its socket was admitted under; it is
    // found next time.
    if !connection::is_open(record) {
        return;
    }
    let Some(record) = (unsafe { record.as_mut() }) else { return };
    let marked = record.flags & CONNECTION_CUT != 0;
    if !marked && record.generation == config.generation {
        return;
    }
    let decision = if marked { record.decision } else { connection::judge(record) };
    let judged = Judged { key: *key, decision, now: !marked as u32 };
    // Where there is no room the kernel calls again, with more.
    if write(output, &judged) && write(output, record) && !marked {
        connection::take_decision(record, config.generation, decision);
    }
}

#[inline(always)]
fn write<T>(output: *mut seq_file, value: &T) -> bool {
    unsafe { bpf_seq_write(output, ptr::from_ref(value).cast(), size_of::<T>() as u32) == 0 }
}
