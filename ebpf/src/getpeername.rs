//! `getpeername()` and `accept()`: the peer that a process believes it talks to.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use weft_common::{SOCKET_CLIENT, SOCKET_SHOWS_PEER, TRANSLATIONS};

use crate::context::{self, Peer, UDP};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn pod_getpeername4(ctx: SockAddrContext) -> i32 {
    show(&Peer::<false>(ctx.sock_addr))
}

#[cgroup_sock_addr(getpeername6)]
pub fn pod_getpeername6(ctx: SockAddrContext) -> i32 {
    show(&Peer::<true>(ctx.sock_addr))
}

#[inline(always)]
fn show<const V6: bool>(peer: &Peer<V6>) -> i32 {
    let socket = peer.socket();
    if socket.is_null() {
        return ALLOW;
    }
    if peer.protocol() == UDP {
        show_service(peer);
        return ALLOW;
    }
    let Some(state) = context::state(socket) else { return ALLOW };
    if state.flags & SOCKET_SHOWS_PEER == 0 {
        return ALLOW;
    }
    let shown = if state.flags & SOCKET_CLIENT != 0 {
        state.origin.destination
    } else {
        state.origin.source
    };
    if peer.can_hold(&shown.address) {
        peer.set(&shown);
    }
    ALLOW
}

/// A connected UDP socket's peer is the service that it was connected to.
#[inline(always)]
fn show_service<const V6: bool>(peer: &Peer<V6>) {
    let Some(services) = context::services(peer.socket()) else { return };
    let backend = peer.endpoint();
    let mut index = 0;
    while index < TRANSLATIONS {
        let known = &services.entries[index];
        if known.backend.port != 0 && known.backend == backend {
            if peer.can_hold(&known.dialled.address) {
                peer.set(&known.dialled);
            }
            return;
        }
        index += 1;
    }
}
