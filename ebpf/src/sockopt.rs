//! What the node's proxy, which has no capability, learns from the kernel and tells it, through
//! options of its own sockets.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use weft_common::{
    Endpoint, Origin, ProvenSource, SO_ORIGINAL_DST, SO_WEFT_ORIGIN, SO_WEFT_SOURCE,
    SOCKET_HAS_ORIGIN, SOCKET_HAS_SOURCE, SOCKET_OF_PROXY,
};

use crate::bytes;
use crate::context;

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `optlen` that keeps the kernel's own handler from seeing a `setsockopt`.
const HANDLED: i32 = -1;
/// The kernel's own result stands.
const PASS: i32 = 1;

/// `struct sockaddr_in`
#[repr(C)]
struct SocketAddressV4 {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

/// `struct sockaddr_in6`
#[repr(C)]
struct SocketAddressV6 {
    family: u16,
    port: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

#[cgroup_sockopt(getsockopt)]
pub fn proxy_getsockopt(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    let (level, name) = unsafe {
        (read_volatile(&raw const (*option).level), read_volatile(&raw const (*option).optname))
    };
    let original = name == SO_ORIGINAL_DST && (level == SOL_IP || level == SOL_IPV6);
    if !original && (level != SOL_IP || name != SO_WEFT_ORIGIN) {
        return PASS;
    }
    let socket = unsafe { read_volatile(&raw const (*option).__bindgen_anon_1.sk) };
    if socket.is_null() {
        return PASS;
    }
    let Some(state) = context::state(socket.cast()) else { return PASS };
    if state.flags & SOCKET_HAS_ORIGIN == 0 {
        return PASS;
    }
    let origin = &state.origin;
    if name == SO_WEFT_ORIGIN {
        answer(&ctx, |value: *mut Origin| unsafe { *value = *origin });
    } else if level == SOL_IP {
        let Endpoint { address, port } = origin.destination;
        if address.is_v4() {
            answer(&ctx, |value: *mut SocketAddressV4| unsafe {
                (*value).family = AF_INET;
                (*value).port = (port as u16).to_be();
                (*value).address = address.v4();
                (*value).zero = [0; 2];
            });
        }
    } else {
        let Endpoint { address, port } = origin.destination;
        answer(&ctx, |value: *mut SocketAddressV6| unsafe {
            (*value).family = AF_INET6;
            (*value).port = (port as u16).to_be();
            (*value).flow = 0;
            (*value).address = address.0;
            (*value).scope = 0;
        });
    }
    PASS
}

/// Answers a `getsockopt` whose buffer is large enough.
#[inline(always)]
fn answer<T>(ctx: &SockoptContext, write: impl FnOnce(*mut T)) {
    let option = ctx.sockopt;
    unsafe {
        let value = read_volatile(&raw const (*option).__bindgen_anon_2.optval) as usize;
        let end = read_volatile(&raw const (*option).__bindgen_anon_3.optval_end) as usize;
        if value + size_of::<T>() > end {
            return;
        }
        write(value as *mut T);
        write_volatile(&raw mut (*option).optlen, size_of::<T>() as i32);
        write_volatile(&raw mut (*option).retval, 0);
    }
}

#[cgroup_sockopt(setsockopt)]
pub fn proxy_setsockopt(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    unsafe {
        if read_volatile(&raw const (*option).level) != SOL_IP
            || read_volatile(&raw const (*option).optname) != SO_WEFT_SOURCE
        {
            return PASS;
        }
        let socket = read_volatile(&raw const (*option).__bindgen_anon_1.sk);
        if socket.is_null() {
            return PASS;
        }
        let value = read_volatile(&raw const (*option).__bindgen_anon_2.optval) as usize;
        let end = read_volatile(&raw const (*option).__bindgen_anon_3.optval_end) as usize;
        if value + size_of::<ProvenSource>() > end {
            return PASS;
        }
        let proven = value as *const ProvenSource;
        let Some(state) = context::state_or_new(socket.cast()) else { return PASS };
        bytes::copy(&(*proven).source, &mut state.origin.source);
        bytes::copy(&(*proven).destination, &mut state.origin.destination);
        state.flags = SOCKET_HAS_SOURCE | SOCKET_OF_PROXY;
        write_volatile(&raw mut (*option).optlen, HANDLED);
    }
    PASS
}
