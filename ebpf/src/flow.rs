//! Flow events, bounded per pod where the reader lags behind.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
};
use aya_ebpf::helpers::{
    bpf_ktime_get_ns, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use weft_common::{
    Counter, Decision, EVENTS_PER_WINDOW, Endpoint, FlowEvent, FlowKind, PodId, PodUse,
    WAKES_PER_WINDOW, WINDOW_SHIFT,
};

use crate::bytes;
use crate::maps::{FLOWS, POD_USE};
use crate::tables;

/// The reader is woken at every multiple of this many bytes.
const WAKE_SHIFT: u32 = 16;
/// Bytes that the ring needs for an event beside its own.
const HEADER: u64 = 8;

/// What an event says of a flow, whatever happened to it.
pub struct Flow<'a> {
    pub source: &'a Endpoint,
    pub destination: &'a Endpoint,
    pub dialled: &'a Endpoint,
    pub source_pod: PodId,
    pub destination_pod: PodId,
    pub decision: Decision,
    pub generation: u32,
    pub path: u8,
    pub protocol: u8,
    pub flags: u8,
}

/// What a close adds.
pub struct Totals {
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub opened: u64,
}

/// What the pod has used, made if there was nothing.
#[inline(always)]
pub fn usage(pod: PodId) -> Option<*mut PodUse> {
    POD_USE.get_ptr_mut(pod)
}

/// Sends an event, charged to `pod`.
#[inline(never)]
pub fn emit(kind: FlowKind, pod: PodId, flow: &Flow, totals: Option<&Totals>) {
    let now = unsafe { bpf_ktime_get_ns() };
    // A pod that nobody knows has no share of its own.
    let mut in_window = EVENTS_PER_WINDOW;
    if let Some(usage) = usage(pod) {
        let window = now >> WINDOW_SHIFT;
        unsafe {
            if (*usage).window != window {
                (*usage).window = window;
                (*usage).events = 0;
            }
            in_window = (*usage).events;
            (*usage).events = in_window + 1;
        }
    }
    // The helpers themselves: aya's functions around them are calls, whose frames count.
    let ring = ptr::from_ref(&FLOWS).cast_mut().cast::<c_void>();
    let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA.into()) };
    if in_window >= EVENTS_PER_WINDOW
        && waiting > unsafe { bpf_ringbuf_query(ring, BPF_RB_RING_SIZE.into()) } >> 1
    {
        tables::count(Counter::EventsLost);
        return;
    }
    let size = size_of::<FlowEvent>() as u64;
    let event = unsafe { bpf_ringbuf_reserve(ring, size, 0) }.cast::<FlowEvent>();
    if event.is_null() {
        tables::count(Counter::EventsLost);
        return;
    }
    unsafe {
        (*event).time = now;
        bytes::copy(flow.source, &raw mut (*event).source);
        bytes::copy(flow.destination, &raw mut (*event).destination);
        bytes::copy(flow.dialled, &raw mut (*event).dialled);
        (*event).source_pod = flow.source_pod;
        (*event).destination_pod = flow.destination_pod;
        (*event).decision = flow.decision;
        (*event).kind = kind as u8;
        (*event).path = flow.path;
        (*event).protocol = flow.protocol;
        (*event).flags = flow.flags;
        match totals {
            Some(totals) => {
                (*event).bytes_out = totals.bytes_out;
                (*event).bytes_in = totals.bytes_in;
                (*event).duration = now.saturating_sub(totals.opened);
            }
            None => {
                (*event).bytes_out = 0;
                (*event).bytes_in = 0;
                (*event).duration = 0;
            }
        }
        (*event).generation = flow.generation;
        (*event).unused = 0;
    }
    let urgent = matches!(kind, FlowKind::Denied | FlowKind::Cut) && in_window < WAKES_PER_WINDOW;
    let crossed = waiting >> WAKE_SHIFT != (waiting + size + HEADER) >> WAKE_SHIFT;
    let wake = if urgent || crossed { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    unsafe { bpf_ringbuf_submit(event.cast(), wake.into()) };
}
