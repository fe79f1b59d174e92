//! Records of TCP connections: who made them, what they say, when they go.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use weft_common::{
    CHARGED, CHARGED_TO_SERVER, CONNECTION_ACCELERATE, CONNECTION_ACCEPTED, CONNECTION_CLIENT_LOW,
    CONNECTION_CUT, CONNECTION_FROM_PROXY, CONNECTION_PROVEN, Config, Connection, ConnectionKey,
    Counter, Decision, Endpoint, FLOW_ACCELERATED, FLOW_EGRESS, FLOW_PROVEN, FlowKind, HELD, PodId,
    Reason, SocketKey,
};

use crate::atomic;
use crate::context::TCP;
use crate::flow::{self, Flow, Totals};
use crate::maps::{BLANK, CONNECTIONS};
use crate::tables;
use crate::verdict::{self, Between};

#[inline(always)]
pub fn find(key: &ConnectionKey) -> Option<*mut Connection> {
    CONNECTIONS.get_ptr_mut(key)
}

/// The endpoint at the socket's own end.
#[inline(always)]
pub fn local(socket: &SocketKey) -> Endpoint {
    Endpoint { address: socket.local, port: u32::from(socket.local_port) }
}

/// The endpoint at the other end.
#[inline(always)]
pub fn remote(socket: &SocketKey) -> Endpoint {
    Endpoint { address: socket.remote, port: u32::from(socket.remote_port) }
}

/// Whether the lower end is the client.
#[inline(always)]
pub fn client_is_low(record: *mut Connection) -> bool {
    unsafe { (*record).flags & CONNECTION_CLIENT_LOW != 0 }
}

/// Address of the `tcp_sock` of an end.
#[inline(always)]
pub fn socket_at(record: *mut Connection, low: bool) -> u64 {
    unsafe { if low { (*record).low_sock } else { (*record).high_sock } }
}

/// Makes the socket that `ops` is about, whose `tcp_sock` is at `socket`, an end's.
#[inline(always)]
pub fn set_socket_at(record: *mut Connection, low: bool, ops: *mut bpf_sock_ops, socket: u64) {
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    unsafe {
        if low {
            (*record).low_cookie = cookie;
            (*record).low_sock = socket;
        } else {
            (*record).high_cookie = cookie;
            (*record).high_sock = socket;
        }
    }
}

/// Whether the record vouches for its client: a socket of this kernel that is still there.
#[inline(always)]
pub fn vouches(record: *mut Connection) -> bool {
    let accepted = unsafe { (*record).flags } & CONNECTION_ACCEPTED != 0;
    !accepted && socket_at(record, client_is_low(record)) != 0
}

/// Why a record was not added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NotAdded {
    /// There is one, left of an earlier connection with the same endpoints: see [`give_way`].
    Exists,
    /// The map is full.
    Full,
}

/// Adds a record, still blank. Nobody else looks at it yet: its first packet has not left, or not
/// reached its process.
#[inline(never)]
pub fn add(key: &ConnectionKey) -> Result<&'static mut Connection, NotAdded> {
    const EEXIST: i32 = -17;
    const NOEXIST: u64 = 1;
    let blank = BLANK.get(0).ok_or(NotAdded::Full)?;
    match CONNECTIONS.insert(key, blank, NOEXIST) {
        Ok(()) => {}
        Err(EEXIST) => return Err(NotAdded::Exists),
        Err(_) => {
            tables::count(Counter::ConnectionsFull);
            return Err(NotAdded::Full);
        }
    }
    match find(key) {
        Some(record) => unsafe { record.as_mut() }.ok_or(NotAdded::Full),
        None => Err(NotAdded::Full),
    }
}

/// Ends a record that is left of an earlier connection. A function that the programs call
/// themselves: Linux 6.1 has 512 bytes of stack for a program and all that it calls.
#[inline(never)]
pub fn give_way(socket: &SocketKey) {
    let (key, _) = socket.connection();
    if let Some(old) = find(&key) {
        end(&key, old, 0, 0);
    }
}

/// Counts and reports a record that has been filled in.
#[inline(always)]
pub fn begin(record: &mut Connection) {
    record.low_held = HELD;
    record.high_held = HELD;
    record.charged = CHARGED;
    // Whoever sees this sees all that was filled in.
    atomic::swap(&raw mut record.opened, unsafe { bpf_ktime_get_ns() });
    charge(record, 1);
    report(FlowKind::Open, record, None);
}

/// How long ago it began, in nanoseconds.
#[inline(always)]
pub fn age(record: *mut Connection) -> u64 {
    let opened = unsafe { (*record).opened };
    unsafe { bpf_ktime_get_ns() }.wrapping_sub(opened)
}

/// Ends a record: counts it off, reports it, removes it. Bytes of TCP (from the client, to the
/// client) come on top of those that were redirected.
#[inline(never)]
pub fn end(key: &ConnectionKey, record: *mut Connection, bytes_out: u64, bytes_in: u64) {
    // Both ends may close at the same time: one of them does it.
    let opened = atomic::swap(unsafe { &raw mut (*record).opened }, 0);
    if opened == 0 {
        return;
    }
    let (low, high) = unsafe { ((*record).low_bytes, (*record).high_bytes) };
    let (redirected_out, redirected_in) =
        if client_is_low(record) { (low, high) } else { (high, low) };
    let totals = Totals {
        bytes_out: bytes_out + redirected_out,
        bytes_in: bytes_in + redirected_in,
        opened,
    };
    report(FlowKind::Close, record, Some(&totals));
    give_back(record);
    let _ = CONNECTIONS.remove(key);
}

/// Reports what happened to a connection.
#[inline(never)]
pub fn report(kind: FlowKind, record: *mut Connection, totals: Option<&Totals>) {
    let record = unsafe { &*record };
    let mut flags = 0;
    if record.flags & (CONNECTION_ACCEPTED | CONNECTION_FROM_PROXY) == 0 {
        flags |= FLOW_EGRESS;
    }
    if record.flags & CONNECTION_PROVEN != 0 {
        flags |= FLOW_PROVEN;
    }
    if record.flags & CONNECTION_ACCELERATE != 0 {
        flags |= FLOW_ACCELERATED;
    }
    let flow = Flow {
        source: &record.origin.source,
        destination: &record.origin.backend,
        dialled: &record.origin.destination,
        source_pod: record.origin.pod,
        destination_pod: record.server,
        decision: record.decision,
        generation: record.generation,
        path: record.path,
        protocol: TCP,
        flags,
    };
    flow::emit(kind, owner(record), &flow, totals);
}

/// The pod against which a record counts.
#[inline(always)]
pub fn owner(record: &Connection) -> PodId {
    if counts_against_server(record) { record.server } else { record.origin.pod }
}

/// Whether it is the server's pod against which a record counts.
#[inline(always)]
pub fn counts_against_server(record: &Connection) -> bool {
    record.flags & (CONNECTION_ACCEPTED | CONNECTION_FROM_PROXY) != 0
}

/// Counts a record off, once. A pod that has closed its socket does not wait for the other end,
/// which could use up its share by never closing.
#[inline(always)]
pub fn give_back(record: *mut Connection) {
    let charged = atomic::swap(unsafe { &raw mut (*record).charged }, 0);
    count_off(unsafe { &*record }, charged);
}

/// The client's pod has closed its socket, and the server, a pod of this node, has not: from now
/// on the record counts against what the server may leave open. False where it has left too many
/// open already. Nobody is refused for that; its record is kept no longer.
#[inline(always)]
pub fn hand_over(record: *mut Connection) -> bool {
    let known = unsafe { &*record };
    let (Some(config), Some(usage)) = (tables::config(), flow::usage(known.server)) else {
        return true;
    };
    let left_open = unsafe { &raw mut (*usage).left_open };
    if atomic::fetch_add(left_open, 1) >= u64::from(config.connections_per_pod) {
        atomic::fetch_add(left_open, u64::MAX);
        return false;
    }
    let charged = atomic::swap(unsafe { &raw mut (*record).charged }, CHARGED_TO_SERVER);
    count_off(known, charged);
    true
}

#[inline(always)]
fn count_off(record: &Connection, charged: u64) {
    if charged == CHARGED {
        charge(record, u64::MAX);
    } else if charged == CHARGED_TO_SERVER {
        if let Some(usage) = flow::usage(record.server) {
            atomic::fetch_add(unsafe { &raw mut (*usage).left_open }, u64::MAX);
        }
    }
}

#[inline(always)]
fn charge(record: &Connection, number: u64) {
    let Some(usage) = flow::usage(owner(record)) else { return };
    let counter = unsafe {
        if counts_against_server(record) {
            &raw mut (*usage).accepted
        } else {
            &raw mut (*usage).connections
        }
    };
    atomic::fetch_add(counter, number);
}

/// Whether a pod has as many records as it may: of connections that it has opened, or that it
/// has `accepted`.
#[inline(always)]
pub fn has_most(config: &Config, pod: PodId, accepted: bool) -> bool {
    let Some(usage) = flow::usage(pod) else { return false };
    let number = unsafe { if accepted { (*usage).accepted } else { (*usage).connections } };
    number >= u64::from(config.connections_per_pod)
}

/// Whether the record has been filled in, and its end has not been counted.
#[inline(always)]
pub fn is_open(record: *mut Connection) -> bool {
    atomic::fetch_add(unsafe { &raw mut (*record).opened }, 0) != 0
}

/// What policy says of the connection now.
#[inline(always)]
pub fn judge(record: &Connection) -> Decision {
    verdict::both_ends(&Between {
        source_pod: record.origin.pod,
        source: &record.origin.source.address,
        destination: &record.origin.backend,
        destination_pod: record.server,
        proven: record.flags & CONNECTION_PROVEN != 0,
        protocol: TCP,
    })
}

/// Writes down what was decided, and marks the connection if it is forbidden.
#[inline(always)]
pub fn take_decision(record: &mut Connection, generation: u32, decision: Decision) {
    record.decision = decision;
    record.generation = generation;
    if !decision.allows() {
        record.flags |= CONNECTION_CUT;
    }
}

/// Whether policy allows the connection now. What an older generation admitted is judged anew;
/// if it is forbidden, it is marked and reported once.
#[inline(always)]
pub fn allowed(config: &Config, record: *mut Connection) -> bool {
    let (generation, flags) = unsafe { ((*record).generation, (*record).flags) };
    if flags & CONNECTION_CUT != 0 {
        return false;
    }
    if generation == config.generation || judged_anew(config.generation, record) {
        return true;
    }
    tables::count(Counter::Denied);
    report(FlowKind::Cut, record, None);
    false
}

/// Judges a connection anew, and marks it if it is forbidden.
#[inline(never)]
fn judged_anew(generation: u32, record: *mut Connection) -> bool {
    let Some(record) = (unsafe { record.as_mut() }) else { return false };
    let decision = judge(record);
    take_decision(record, generation, decision);
    decision.allows()
}

/// The decision about a connection that has no record, as a client of the pod would begin it.
#[inline(always)]
pub fn to_unknown_server(
    config: &Config,
    pod: PodId,
    source: &weft_common::Address,
    destination: &Endpoint,
) -> Decision {
    if verdict::is_proxy_port(config, destination) {
        return Decision::because(Reason::ProxyPort);
    }
    verdict::both_ends(&Between {
        source_pod: pod,
        source,
        destination,
        destination_pod: 0,
        proven: false,
        protocol: TCP,
    })
}
