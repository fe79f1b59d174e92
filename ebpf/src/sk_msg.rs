//! Payload from socket to socket, bounded and in order.
//!
//! A message may be redirected only if every earlier byte of its direction has been read, or was
//! itself redirected: the kernel lets a reader have redirected bytes before those that TCP holds.
//! What a direction's state is, only its own sender writes.

use core::ptr::read_volatile;

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::sk_msg;
use aya_ebpf::programs::SkMsgContext;
use weft_common::{
    CONFIG_ACCELERATE, CONFIG_UNBOUNDED, CONNECTION_ACCELERATE, Config, Connection, ConnectionKey,
    Counter, HELD, HELD_BEHIND_REDIRECTED, HELD_FOR_GOOD, HELD_NOT,
};

use crate::atomic;
use crate::connection;
use crate::context;
use crate::lagging;
use crate::maps::{OFFSETS, SOCKETS};
use crate::tables;

/// The message takes the way that was set; without one, TCP.
const PASS: u32 = 1;
/// The sender gets an error.
const DROP: u32 = 0;
/// Redirect into the receive queue of the other socket.
const INGRESS: u64 = 1;
/// What began this long ago (33 ms) is in the reader's queue. Far more than it takes, for a
/// sender may lose its CPU meanwhile, and the clock's ticks are up to 10 ms apart.
const SETTLING: u64 = 1 << 25;

#[sk_msg]
pub fn redirect(ctx: SkMsgContext) -> u32 {
    let own = context::socket_of_message(ctx.msg);
    let (key, low) = own.connection();
    let Some(record) = connection::find(&key) else { return PASS };
    let Some(config) = tables::config() else { return PASS };
    if !connection::allowed(config, record) {
        return DROP;
    }
    if !may_redirect(config, record, low, ctx.size()) {
        hold(&key, record, low);
        return PASS;
    }
    if SOCKETS.redirect_msg(&ctx, &mut own.reversed(), INGRESS) as u32 != PASS {
        // The other process has closed its socket: TCP will say so.
        hold(&key, record, low);
        return PASS;
    }
    let size = u64::from(ctx.size());
    unsafe {
        if low {
            (*record).low_bytes += size;
        } else {
            (*record).high_bytes += size;
        }
    }
    tables::count(Counter::Redirected);
    PASS
}

#[inline(always)]
fn may_redirect(config: &Config, record: *mut Connection, low: bool, size: u32) -> bool {
    let flags = unsafe { (*record).flags };
    if flags & CONNECTION_ACCELERATE == 0 || config.flags & CONFIG_ACCELERATE == 0 {
        return false;
    }
    let sender = connection::socket_at(record, low);
    let reader = connection::socket_at(record, !low);
    if sender == 0 || reader == 0 {
        return false;
    }
    let offsets = OFFSETS.load();
    if offsets.rmem_alloc == 0 {
        return false;
    }
    // Before it looks whether it may: see `end_redirection`.
    atomic::swap(began(record, low), unsafe { bpf_ktime_get_coarse_ns() });
    if held_for_good(record, low) {
        return false;
    }
    if is_held(record, low) {
        let drained = equal(sender, offsets.snd_una, offsets.write_seq)
            && equal(reader, offsets.copied_seq, offsets.rcv_nxt);
        let lags = reader_may_lag(record, low);
        // Before anything is redirected: see `lagging`. A reader that reads on is forgotten at
        // once, so that the agent need not look at it.
        if lags && (drained || lagging::has_passed(reader)) {
            lagging::forget(reader);
            set_held(record, low, HELD);
        }
        if !drained {
            tables::count(Counter::HeldByOrder);
            return false;
        }
        set_held(record, low, HELD_NOT);
    }
    if config.flags & CONFIG_UNBOUNDED != 0 {
        return true;
    }
    let unread = field(reader, offsets.rmem_alloc).unwrap_or(u32::MAX);
    let bound = match config.acceleration_bound {
        // Unread bytes count against the buffer into which TCP receives. They leave it a quarter:
        // a segment that finds it full is dropped, and only sent again after a timeout.
        0 => {
            let room = field(reader, offsets.rcvbuf).unwrap_or(0);
            (room - (room >> 2)).saturating_sub(size)
        }
        bound => bound,
    };
    if unread > bound {
        tables::count(Counter::HeldByReader);
        return false;
    }
    true
}

/// From now on the direction's bytes go to TCP.
#[inline(always)]
fn hold(key: &ConnectionKey, record: *mut Connection, low: bool) {
    if !is_held(record, low) {
        remember_reader(key, record, low);
    }
}

/// Nothing has been sent yet, so nothing is in TCP.
#[inline(always)]
pub fn begin_redirection(record: *mut Connection, low: bool) {
    if !held_for_good(record, low) {
        set_held(record, low, HELD_NOT);
    }
}

/// Ends redirection of what an end sends, for good. False, and nothing has changed, where its
/// reader may have redirected bytes to read, or get.
///
/// The sender says that it has begun before it looks whether it may, and here it is the other way
/// round, with a full barrier between the two at both ends: so either the sender sees that it may
/// not, or it is seen here. Bytes of TCP that come meanwhile change nothing.
#[inline(never)]
pub fn end_redirection(key: &ConnectionKey, record: *mut Connection, low: bool) -> bool {
    let began = began(record, low);
    let last = unsafe { read_volatile(began) };
    if !has_read_redirected(record, low) {
        return false;
    }
    set_held(record, low, HELD_FOR_GOOD);
    if atomic::fetch_add(began, 0) == last {
        return true;
    }
    remember_reader(key, record, low);
    false
}

/// Holds a direction, and has its reader woken. A reader that closes forgets itself where it
/// finds it held like that, so that is said first. Whoever finds it held, and the reader not in
/// `LAGGING` yet, sees that this has just begun.
#[inline(always)]
fn remember_reader(key: &ConnectionKey, record: *mut Connection, low: bool) {
    atomic::swap(began(record, low), unsafe { bpf_ktime_get_ns() });
    set_held(record, low, HELD_BEHIND_REDIRECTED);
    lagging::remember(key, record, low);
}

/// Whether the reader of what an end sends may be in `LAGGING`.
#[inline(always)]
pub fn reader_may_lag(record: *mut Connection, low: bool) -> bool {
    matches!(how_held(record, low), HELD_BEHIND_REDIRECTED | HELD_FOR_GOOD)
}

/// Whether the reader of what an end sends has read all that was redirected to it. What has just
/// begun may not be in its queue yet, and no program runs when it is.
#[inline(always)]
fn has_read_redirected(record: *mut Connection, low: bool) -> bool {
    let began = unsafe { read_volatile(began(record, low)) };
    if began == 0 {
        return true;
    }
    // Iterators do not have the coarse clock, which is behind this one.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.saturating_sub(began) <= SETTLING {
        return false;
    }
    let reader = connection::socket_at(record, !low);
    match how_held(record, low) {
        HELD | HELD_FOR_GOOD => true,
        HELD_BEHIND_REDIRECTED if lagging::has_passed(reader) => true,
        _ => has_nothing_unread(reader),
    }
}

/// Whether a reader's queues are known to be empty.
#[inline(always)]
pub fn has_nothing_unread(reader: u64) -> bool {
    // Where redirected bytes may not be charged to the reader, nobody knows.
    let Some(config) = tables::config() else { return false };
    config.flags & CONFIG_UNBOUNDED == 0 && field(reader, OFFSETS.load().rmem_alloc) == Some(0)
}

#[inline(always)]
fn began(record: *mut Connection, low: bool) -> *mut u64 {
    unsafe { if low { &raw mut (*record).low_began } else { &raw mut (*record).high_began } }
}

/// Whether two fields of a `tcp_sock` are known to be equal.
#[inline(always)]
fn equal(socket: u64, one: u32, other: u32) -> bool {
    match (field(socket, one), field(socket, other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

/// The sequence number behind all that a process has written.
#[inline(always)]
pub fn written(socket: u64) -> Option<u32> {
    match OFFSETS.load().write_seq {
        0 => None,
        offset => field(socket, offset),
    }
}

#[inline(always)]
pub fn field(socket: u64, offset: u32) -> Option<u32> {
    unsafe { bpf_probe_read_kernel((socket + u64::from(offset)) as *const u32) }.ok()
}

/// Whether what an end sends goes to TCP.
#[inline(always)]
pub fn is_held(record: *mut Connection, low: bool) -> bool {
    how_held(record, low) != HELD_NOT
}

#[inline(always)]
fn held_for_good(record: *mut Connection, low: bool) -> bool {
    how_held(record, low) == HELD_FOR_GOOD
}

#[inline(always)]
fn how_held(record: *mut Connection, low: bool) -> u8 {
    let held =
        unsafe { if low { &raw const (*record).low_held } else { &raw const (*record).high_held } };
    unsafe { read_volatile(held) }
}

/// Says how a direction is held.
#[inline(always)]
fn set_held(record: *mut Connection, low: bool, value: u8) {
    unsafe {
        if low {
            (*record).low_held = value;
        } else {
            (*record).high_held = value;
        }
    }
}
