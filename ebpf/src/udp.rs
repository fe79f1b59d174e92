//! UDP services: a socket's datagrams to a service go to one backend, and what the backend sends
//! comes from the service.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use weft_common::{Endpoint, TRANSLATIONS, Translation};

use crate::context::{self, Peer, UDP};
use crate::identity::{self, Caller};
use crate::service::{self, Choice};
use crate::tables;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(sendmsg4)]
pub fn pod_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&Peer::<false>(ctx.sock_addr))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn pod_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&Peer::<true>(ctx.sock_addr))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn pod_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(&Peer::<false>(ctx.sock_addr))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn pod_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(&Peer::<true>(ctx.sock_addr))
}

/// A datagram leaves. Whether it may is decided at the packet (`pod_egress`), whose refusal the
/// sender gets as EPERM.
#[inline(always)]
fn sendmsg<const V6: bool>(peer: &Peer<V6>) -> i32 {
    if peer.protocol() != UDP {
        return ALLOW;
    }
    let dialled = peer.endpoint();
    if dialled.address.is_loopback() {
        return ALLOW;
    }
    let Some(config) = tables::config() else { return DENY };
    let id = match identity::of_current(config) {
        Caller::Enrolled(id, _) => id,
        Caller::Other => return ALLOW,
        Caller::Unknown => return DENY,
    };
    let socket = peer.socket();
    if socket.is_null() {
        return DENY;
    }
    if let Some(services) = context::services(socket) {
        let mut index = 0;
        while index < TRANSLATIONS {
            let known = &services.entries[index];
            if known.backend.port != 0 && known.dialled == dialled {
                if service::still_has(&dialled, UDP, known.backends) {
                    peer.set(&known.backend);
                    return ALLOW;
                }
                break;
            }
            index += 1;
        }
    }
    match service::choose(&dialled, UDP, id) {
        Choice::NoService => ALLOW,
        Choice::Backend { backend, backends } if peer.can_hold(&backend.address) => {
            if remember(socket, &dialled, &backend, backends).is_none() {
                return DENY;
            }
            peer.set(&backend);
            ALLOW
        }
        _ => {
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
    }
}

/// A datagram is read: if a backend sent it, it comes from the service.
#[inline(always)]
fn recvmsg<const V6: bool>(peer: &Peer<V6>) -> i32 {
    let socket = peer.socket();
    if socket.is_null() {
        return ALLOW;
    }
    let Some(services) = context::services(socket) else { return ALLOW };
    let source = peer.endpoint();
    let mut index = 0;
    while index < TRANSLATIONS {
        let known = &services.entries[index];
        if known.backend.port != 0 && known.backend == source {
            if peer.can_hold(&known.dialled.address) {
                peer.set(&known.dialled);
            }
            return ALLOW;
        }
        index += 1;
    }
    ALLOW
}

/// Remembers where a socket's datagrams to a service go. `None` where there is no memory for it.
#[inline(always)]
pub fn remember(
    socket: *mut c_void,
    dialled: &Endpoint,
    backend: &Endpoint,
    backends: u32,
) -> Option<()> {
    if socket.is_null() {
        return None;
    }
    let services = context::services_or_new(socket)?;
    let mut index = 0;
    while index < TRANSLATIONS {
        let entry = &mut services.entries[index];
        if entry.backend.port != 0 && entry.dialled == *dialled {
            *entry = Translation { dialled: *dialled, backend: *backend, backends };
            return Some(());
        }
        index += 1;
    }
    let next = services.next as usize % TRANSLATIONS;
    services.next = next as u32 + 1;
    services.entries[next] = Translation { dialled: *dialled, backend: *backend, backends };
    Some(())
}
