//! What happens to TCP sockets: their connection gets a record, both ends are made known, and the
//! record goes with them.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::{bpf_skc_to_mptcp_sock, bpf_skc_to_tcp_sock, bpf_sock_ops_cb_flags_set};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use weft_common::{
    CONFIG_READY, CONNECTION_ACCELERATE, CONNECTION_ACCEPTED, CONNECTION_CLIENT_LOW,
    CONNECTION_CUT, CONNECTION_ESTABLISHED, CONNECTION_FROM_PROXY, CONNECTION_PROVEN,
    CONNECTION_TO_PROXY, Connection, Counter, Path, SOCKET_ACCELERATE, SOCKET_ACCEPTED,
    SOCKET_ADMITTED, SOCKET_AWAITS_PROXY, SOCKET_CLIENT, SOCKET_HAS_ORIGIN, SOCKET_HAS_SOURCE,
    SOCKET_OF_PROXY, SOCKET_PROVEN, SOCKET_RECORDED, SOCKET_SHOWS_PEER, SocketKey, SocketState,
};

use crate::atomic;
use crate::bytes;
use crate::connection::{self, NotAdded};
use crate::context::{self, TCP};
use crate::lagging;
use crate::leaving;
use crate::maps::SOCKETS;
use crate::sk_msg;
use crate::tables;
use crate::verdict::{self, Between};

/// The program has no opinion on what the kernel asks it.
const OK: u32 = 1;
const E2BIG: i32 = -7;
const TCP_ESTABLISHED: u32 = 1;
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

#[sock_ops]
pub fn pod_sock_ops(ctx: SockOpsContext) -> u32 {
    on_event::<false>(&ctx)
}

#[sock_ops]
pub fn proxy_sock_ops(ctx: SockOpsContext) -> u32 {
    on_event::<true>(&ctx)
}

#[inline(always)]
fn on_event<const PROXY: bool>(ctx: &SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = ctx.op();
    let wanted = op == BPF_SOCK_OPS_TCP_CONNECT_CB
        || op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
        || op == BPF_SOCK_OPS_STATE_CB;
    if !wanted {
        return OK;
    }
    let socket = unsafe { read_volatile(&raw const (*ops).__bindgen_anon_2.sk) };
    if socket.is_null() {
        return OK;
    }
    let socket = socket.cast::<c_void>();
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if !add_record::<PROXY>(ops, socket) && !PROXY && unannounced(ops, socket) {
                add_record::<PROXY>(ops, socket);
            }
        }
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => active::<PROXY>(ops, socket),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            if !passive::<PROXY>(ops, socket) && !PROXY {
                from_elsewhere(ops, socket);
            }
        }
        _ => {
            let args = unsafe { &raw const (*ops).__bindgen_anon_1.args };
            let (from, to) = unsafe {
                (read_volatile(&raw const (*args)[0]), read_volatile(&raw const (*args)[1]))
            };
            if to == TCP_CLOSE {
                closed::<PROXY>(ops, socket, from);
            } else if !PROXY && from == TCP_ESTABLISHED && to == TCP_FIN_WAIT1 {
                finishing(ops, socket);
            }
        }
    }
    OK
}

/// Whether a socket is a pod's, or the proxy's, whichever the program is for: in a cluster the
/// proxy is below the pods' root, too, and both programs see its sockets.
#[inline(always)]
fn is_own<const PROXY: bool>(state: &SocketState) -> bool {
    (state.flags & SOCKET_OF_PROXY != 0) == PROXY
}

/// The same of a socket that is watched, if it has a record. A pod's without state has been
/// accepted and joined: see `passive`.
#[inline(always)]
fn is_recorded<const PROXY: bool>(state: &Option<&'static mut SocketState>) -> bool {
    match state {
        Some(state) => is_own::<PROXY>(state) && state.flags & SOCKET_RECORDED != 0,
        None => !PROXY,
    }
}

#[inline(always)]
fn watch_state(ops: *mut bpf_sock_ops) {
    let flags = unsafe { read_volatile(&raw const (*ops).bpf_sock_ops_cb_flags) };
    unsafe { bpf_sock_ops_cb_flags_set(ops, (flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32) };
}

/// Nothing is known of the socket.
const UNKNOWN: u32 = 0;
/// There is a record, or there need not be one.
const DONE: u32 = 1;
/// A record of an earlier connection with the same endpoints is in the way.
const TAKEN: u32 = 2;

/// A SYN is about to leave. False if nothing is known of the socket.
#[inline(always)]
fn add_record<const PROXY: bool>(ops: *mut bpf_sock_ops, socket: *mut c_void) -> bool {
    let mut outcome = connecting::<PROXY>(ops, socket);
    if outcome == TAKEN {
        connection::give_way(&context::socket_of_ops(ops));
        outcome = connecting::<PROXY>(ops, socket);
    }
    outcome != UNKNOWN
}

/// Makes the record of a client's connection of what its socket's state says: `UNKNOWN`, `DONE` or
/// `TAKEN`.
#[inline(never)]
fn connecting<const PROXY: bool>(ops: *mut bpf_sock_ops, socket: *mut c_void) -> u32 {
    let key = context::socket_of_ops(ops);
    let Some(state) = context::state(socket) else { return UNKNOWN };
    if (state.flags & SOCKET_OF_PROXY != 0) != PROXY {
        return DONE;
    }
    if state.flags & SOCKET_CLIENT == 0 || (PROXY && state.flags & SOCKET_HAS_SOURCE == 0) {
        return DONE;
    }
    // A socket that was made by one pod and connected by another vouches for neither.
    if !PROXY && key.local != state.origin.source.address {
        return DONE;
    }
    let (connection, low) = key.connection();
    let mut flags = 0;
    if low {
        flags |= CONNECTION_CLIENT_LOW;
    }
    if state.flags & SOCKET_PROVEN != 0 {
        flags |= CONNECTION_PROVEN;
    }
    if state.flags & SOCKET_ACCELERATE != 0 {
        flags |= CONNECTION_ACCELERATE;
    }
    if PROXY {
        flags |= CONNECTION_FROM_PROXY;
    } else {
        state.origin.source.port = u32::from(key.local_port);
        if state.path == Path::Tunnel as u32 {
            flags |= CONNECTION_TO_PROXY;
            state.flags |= SOCKET_AWAITS_PROXY;
        }
    }
    let own = unsafe { bpf_skc_to_tcp_sock(socket) } as u64;
    let record = match connection::add(&connection) {
        Ok(record) => record,
        Err(NotAdded::Exists) => return TAKEN,
        Err(NotAdded::Full) => return DONE,
    };
    fill(record, state);
    record.flags = flags;
    connection::set_socket_at(record, low, ops, own);
    state.flags |= SOCKET_ADMITTED | SOCKET_RECORDED;
    watch_state(ops);
    connection::begin(record);
    DONE
}

/// A pod's TCP connection that no `connect4` has seen: one of MPTCP. It goes straight, and its
/// identity is not attested. One that policy forbids is refused, and reported, where its packets
/// leave; false says so.
#[inline(never)]
fn unannounced(ops: *mut bpf_sock_ops, socket: *mut c_void) -> bool {
    let key = context::socket_of_ops(ops);
    if key.remote.is_loopback() {
        return false;
    }
    let Some(config) = tables::config() else { return false };
    if config.flags & CONFIG_READY == 0 || verdict::is_proxy_port(config, &connection::remote(&key))
    {
        return false;
    }
    unattested::<true>(socket, &key)
}

/// Judges a connection whose client is not attested, and if it may be, says so in the state of
/// the socket that is the client's or the server's. `ends` has the client's end as its own. False
/// where it may not be, or its pod has as many records as it may.
#[inline(always)]
fn unattested<const CLIENT: bool>(socket: *mut c_void, ends: &SocketKey) -> bool {
    if ends.local == ends.remote {
        return false;
    }
    let Some(config) = tables::config() else { return false };
    let client = verdict::local_pod(&tables::address(&ends.local));
    let server = verdict::local_pod(&tables::address(&ends.remote));
    let own = if CLIENT { client } else { server };
    if verdict::enrolled(own).is_none() || connection::has_most(config, own, !CLIENT) {
        return false;
    }
    let destination = connection::remote(ends);
    let between = Between {
        source_pod: client,
        source: &ends.local,
        destination: &destination,
        destination_pod: server,
        proven: false,
        protocol: TCP,
    };
    let decision = verdict::both_ends(&between);
    if !decision.allows() {
        return false;
    }
    let Some(state) = context::state_or_new(socket) else { return false };
    state.origin.destination = destination;
    state.origin.backend = destination;
    state.origin.source = connection::local(ends);
    state.origin.pod = client;
    state.server = server;
    state.decision = decision;
    state.generation = config.generation;
    state.flags = if CLIENT { SOCKET_CLIENT } else { SOCKET_ACCEPTED };
    state.path = Path::Untouched as u32;
    true
}

/// A client's connection stands.
#[inline(never)]
fn active<const PROXY: bool>(ops: *mut bpf_sock_ops, socket: *mut c_void) {
    let Some(state) = context::state(socket) else { return };
    if !is_own::<PROXY>(state) {
        return;
    }
    state.flags &= !SOCKET_AWAITS_PROXY;
    if state.flags & SOCKET_RECORDED == 0 || state.flags & SOCKET_ACCELERATE == 0 {
        return;
    }
    let key = context::socket_of_ops(ops);
    if !join(ops, socket, &key) {
        return;
    }
    // Only TCP Fast Open may have sent something, or wait to.
    let (connection, low) = key.connection();
    let Some(record) = connection::find(&connection) else { return };
    let own = connection::socket_at(record, low);
    let acknowledged = unsafe { read_volatile(&raw const (*ops).snd_una) };
    if sk_msg::written(own) == Some(acknowledged) {
        sk_msg::begin_redirection(record, low);
    }
}

/// A listener has a new connection. False if it has no record.
#[inline(never)]
fn passive<const PROXY: bool>(ops: *mut bpf_sock_ops, socket: *mut c_void) -> bool {
    let key = context::socket_of_ops(ops);
    if key.local.is_loopback() {
        return true;
    }
    let (connection, low) = key.connection();
    let Some(record) = connection::find(&connection) else {
        return false;
    };
    let flags = unsafe { (*record).flags };
    // In a cluster the proxy is below the pods' root, too.
    if (flags & CONNECTION_TO_PROXY != 0) != PROXY {
        return true;
    }
    if flags & CONNECTION_CUT != 0 || connection::client_is_low(record) == low {
        return true;
    }
    if !connection::vouches(record) {
        return true;
    }
    let from_proxy = flags & CONNECTION_FROM_PROXY != 0;
    let own = unsafe { bpf_skc_to_tcp_sock(socket) } as u64;
    connection::set_socket_at(record, low, ops, own);
    unsafe { (*record).flags |= CONNECTION_ESTABLISHED };
    watch_state(ops);
    // It has sent nothing yet: its process does not have it.
    if flags & CONNECTION_ACCELERATE != 0 && join(ops, socket, &key) {
        sk_msg::begin_redirection(record, low);
        // State would only save its few packets the look at the record, and costs more than that.
        if !PROXY && !from_proxy {
            return true;
        }
    }
    let Some(state) = context::state_or_new(socket) else { return true };
    let record = unsafe { &*record };
    bytes::copy(&record.origin, &mut state.origin);
    state.server = record.server;
    state.decision = record.decision;
    state.generation = record.generation;
    state.path = u32::from(record.path);
    let mut socket_flags = SOCKET_ACCEPTED | SOCKET_ADMITTED | SOCKET_RECORDED;
    if flags & CONNECTION_PROVEN != 0 {
        socket_flags |= SOCKET_PROVEN;
    }
    if PROXY {
        socket_flags |= SOCKET_OF_PROXY | SOCKET_HAS_ORIGIN;
    } else if from_proxy {
        socket_flags |= SOCKET_SHOWS_PEER;
    }
    state.flags = socket_flags;
    true
}

/// A pod has accepted a client that is not a pod of the mesh on this node. Its SYN was judged by
/// `pod_ingress`; this decides again, for the record.
#[inline(always)]
fn from_elsewhere(ops: *mut bpf_sock_ops, socket: *mut c_void) {
    if !admit(ops, socket) {
        return;
    }
    let Some(state) = context::state(socket) else { return };
    let key = context::socket_of_ops(ops);
    record_accepted(ops, &key, state, unsafe { bpf_skc_to_tcp_sock(socket) } as u64);
    if state.flags & SOCKET_RECORDED != 0 {
        watch_state(ops);
    }
}

/// Judges an accepted connection, and if it may be, says so in the socket's state.
#[inline(never)]
fn admit(ops: *mut bpf_sock_ops, socket: *mut c_void) -> bool {
    unattested::<false>(socket, &context::socket_of_ops(ops).reversed())
}

#[inline(never)]
fn record_accepted(ops: *mut bpf_sock_ops, key: &SocketKey, state: &mut SocketState, own: u64) {
    let (connection, low) = key.connection();
    // There was none a moment ago.
    let Ok(record) = connection::add(&connection) else { return };
    fill(record, state);
    record.flags =
        CONNECTION_ACCEPTED | CONNECTION_ESTABLISHED | if low { 0 } else { CONNECTION_CLIENT_LOW };
    connection::set_socket_at(record, low, ops, own);
    state.flags |= SOCKET_ADMITTED | SOCKET_RECORDED;
    connection::begin(record);
}

/// Copies what a socket knows of its connection into the record.
#[inline(always)]
fn fill(record: &mut Connection, state: &SocketState) {
    bytes::copy(&state.origin, &mut record.origin);
    record.server = state.server;
    record.decision = state.decision;
    record.generation = state.generation;
    record.path = state.path as u8;
}

/// Makes a socket one that messages can be redirected from and to. False if it cannot be.
#[inline(always)]
fn join(ops: *mut bpf_sock_ops, socket: *mut c_void, key: &SocketKey) -> bool {
    // A subflow of MPTCP carries no stream of its own.
    if !unsafe { bpf_skc_to_mptcp_sock(socket) }.is_null() {
        return false;
    }
    let mut key = *key;
    let joined = SOCKETS.update(&mut key, unsafe { &mut *ops }, 0);
    if joined == Err(E2BIG) {
        tables::count(Counter::SocketsFull);
    }
    joined.is_ok()
}

/// A pod's socket is about to send its FIN, and its process may go on reading. A reader of a
/// joined socket that is woken and finds nothing gets EAGAIN, though it blocks, and the FIN's
/// acknowledgement is what wakes it. So it gets a plain socket back. This runs inside of
/// `shutdown`, with the socket locked. The proxy's sockets do not block.
#[inline(never)]
fn finishing(ops: *mut bpf_sock_ops, socket: *mut c_void) {
    if !is_recorded::<false>(&context::state(socket)) {
        return;
    }
    let key = context::socket_of_ops(ops);
    let (connection, low) = key.connection();
    let Some(record) = connection::find(&connection) else { return };
    let own = unsafe { bpf_skc_to_tcp_sock(socket) } as u64;
    if unsafe { (*record).flags } & CONNECTION_ACCELERATE == 0
        || connection::socket_at(record, low) != own
    {
        return;
    }
    if sk_msg::end_redirection(&connection, record, !low) {
        leaving::leave(&key);
    }
}

/// A socket is closed, or will not be connected.
#[inline(never)]
fn closed<const PROXY: bool>(ops: *mut bpf_sock_ops, socket: *mut c_void, from: u32) {
    let state = context::state(socket);
    if !is_recorded::<PROXY>(&state) {
        return;
    }
    if let Some(state) = state {
        state.flags &= !(SOCKET_ADMITTED | SOCKET_RECORDED);
    }
    let key = context::socket_of_ops(ops);
    let (connection, low) = key.connection();
    let Some(record) = connection::find(&connection) else { return };
    let own = unsafe { bpf_skc_to_tcp_sock(socket) } as u64;
    if connection::socket_at(record, low) != own {
        // It belongs to a later connection with the same endpoints.
        return;
    }
    let client = connection::client_is_low(record) == low;
    // While its socket is in the record, the other end leaves it alone.
    let mut kept = true;
    if client != connection::counts_against_server(unsafe { &*record }) {
        let to_proxy = unsafe { (*record).flags } & CONNECTION_TO_PROXY != 0;
        if client && !to_proxy && connection::socket_at(record, !low) != 0 {
            kept = connection::hand_over(record);
        } else {
            connection::give_back(record);
        }
    }
    release(record, low);
    if sk_msg::reader_may_lag(record, !low) {
        lagging::forget(own);
    }
    if kept && connection::socket_at(record, !low) != 0 {
        // The other end will report and remove it.
        return;
    }
    // Sequence numbers count SYN and FIN, too.
    let fin_acked = matches!(from, TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING) as u64;
    let fin_received =
        matches!(from, TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING) as u64;
    let sent = unsafe { read_volatile(&raw const (*ops).bytes_acked) };
    let sent = sent.saturating_sub(fin_acked + client as u64);
    let received = unsafe { read_volatile(&raw const (*ops).bytes_received) };
    let received = received.saturating_sub(fin_received);
    let (bytes_out, bytes_in) = if client { (sent, received) } else { (received, sent) };
    connection::end(&connection, record, bytes_out, bytes_in);
}

/// Takes an end's socket out of the record. Both ends may close at the same time on two CPUs:
/// the second one has to see that the first is gone, so this is a full barrier before it looks.
#[inline(always)]
fn release(record: *mut Connection, low: bool) {
    if low {
        atomic::swap(unsafe { &raw mut (*record).low_sock }, 0);
    } else {
        atomic::swap(unsafe { &raw mut (*record).high_sock }, 0);
    }
}
