//! The contexts of the programs, in the types of the mesh.

use core::ffi::c_void;
use core::ptr;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr, bpf_sock_ops, sk_msg_md};
use aya_ebpf::helpers::bpf_sk_storage_get;
use weft_common::{Address, Endpoint, SocketKey, SocketState, Translations};

use crate::maps::{SOCKET_SERVICES, SOCKET_STATE};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;
pub const AF_INET: u32 = 2;

/// The address that a `cgroup_sock_addr` program is about.
pub struct Peer<const V6: bool>(pub *mut bpf_sock_addr);

impl<const V6: bool> Peer<V6> {
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        let protocol = unsafe { read_volatile(&raw const (*self.0).protocol) };
        // IPPROTO_MPTCP is 256 more than IPPROTO_TCP, and begins with a connection of TCP.
        protocol as u8
    }

    #[inline(always)]
    pub fn socket(&self) -> *mut c_void {
        unsafe { read_volatile(&raw const (*self.0).__bindgen_anon_1.sk) }.cast()
    }

    #[inline(always)]
    pub fn endpoint(&self) -> Endpoint {
        let port = unsafe { read_volatile(&raw const (*self.0).user_port) };
        let port = u32::from(u16::from_be(port as u16));
        if V6 {
            let address = unsafe { words(&raw const (*self.0).user_ip6) };
            Endpoint { address, port }
        } else {
            let word = unsafe { read_volatile(&raw const (*self.0).user_ip4) };
            Endpoint { address: Address::from_v4(word), port }
        }
    }

    /// Whether an address can be told through this hook.
    #[inline(always)]
    pub fn can_hold(&self, address: &Address) -> bool {
        V6 || address.is_v4()
    }

    #[inline(always)]
    pub fn set(&self, endpoint: &Endpoint) {
        // Volatile: LLVM would merge neighbouring stores, which the verifier refuses.
        unsafe {
            if V6 {
                let ip = &raw mut (*self.0).user_ip6;
                write_volatile(&raw mut (*ip)[0], endpoint.address.0[0]);
                write_volatile(&raw mut (*ip)[1], endpoint.address.0[1]);
                write_volatile(&raw mut (*ip)[2], endpoint.address.0[2]);
                write_volatile(&raw mut (*ip)[3], endpoint.address.0[3]);
            } else {
                write_volatile(&raw mut (*self.0).user_ip4, endpoint.address.v4());
            }
            write_volatile(&raw mut (*self.0).user_port, u32::from((endpoint.port as u16).to_be()));
        }
    }
}

#[inline(always)]
unsafe fn words(ip: *const [u32; 4]) -> Address {
    unsafe {
        Address([
            read_volatile(&raw const (*ip)[0]),
            read_volatile(&raw const (*ip)[1]),
            read_volatile(&raw const (*ip)[2]),
            read_volatile(&raw const (*ip)[3]),
        ])
    }
}

/// The key of the socket that a `sock_ops` program is about. A socket of AF_INET6 that talks IPv4
/// has IPv4 addresses.
#[inline(always)]
pub fn socket_of_ops(ops: *mut bpf_sock_ops) -> SocketKey {
    unsafe {
        let local_port = read_volatile(&raw const (*ops).local_port) as u16;
        let remote_port = u32::from_be(read_volatile(&raw const (*ops).remote_port)) as u16;
        if read_volatile(&raw const (*ops).family) != AF_INET {
            let remote = words(&raw const (*ops).remote_ip6);
            if !remote.is_v4() {
                let local = words(&raw const (*ops).local_ip6);
                return SocketKey { local, remote, local_port, remote_port };
            }
        }
        let local = Address::from_v4(read_volatile(&raw const (*ops).local_ip4));
        let remote = Address::from_v4(read_volatile(&raw const (*ops).remote_ip4));
        SocketKey { local, remote, local_port, remote_port }
    }
}

/// The key of the socket that sends a message.
#[inline(always)]
pub fn socket_of_message(message: *mut sk_msg_md) -> SocketKey {
    unsafe {
        let local_port = read_volatile(&raw const (*message).local_port) as u16;
        let remote_port = u32::from_be(read_volatile(&raw const (*message).remote_port)) as u16;
        if read_volatile(&raw const (*message).family) != AF_INET {
            let remote = words(&raw const (*message).remote_ip6);
            if !remote.is_v4() {
                let local = words(&raw const (*message).local_ip6);
                return SocketKey { local, remote, local_port, remote_port };
            }
        }
        let local = Address::from_v4(read_volatile(&raw const (*message).local_ip4));
        let remote = Address::from_v4(read_volatile(&raw const (*message).remote_ip4));
        SocketKey { local, remote, local_port, remote_port }
    }
}

/// What is known of a socket. `socket` is what a context gave, checked not to be null.
#[inline(always)]
pub fn state(socket: *mut c_void) -> Option<&'static mut SocketState> {
    unsafe {
        bpf_sk_storage_get(map_of(&SOCKET_STATE), socket, ptr::null_mut(), 0)
            .cast::<SocketState>()
            .as_mut()
    }
}

/// The same, made (zero) if there was nothing.
#[inline(always)]
pub fn state_or_new(socket: *mut c_void) -> Option<&'static mut SocketState> {
    unsafe {
        bpf_sk_storage_get(
            map_of(&SOCKET_STATE),
            socket,
            ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
        .cast::<SocketState>()
        .as_mut()
    }
}

/// The services that a socket has sent datagrams to.
#[inline(always)]
pub fn services(socket: *mut c_void) -> Option<&'static mut Translations> {
    unsafe {
        bpf_sk_storage_get(map_of(&SOCKET_SERVICES), socket, ptr::null_mut(), 0)
            .cast::<Translations>()
            .as_mut()
    }
}

/// The same, made if there was nothing.
#[inline(always)]
pub fn services_or_new(socket: *mut c_void) -> Option<&'static mut Translations> {
    unsafe {
        bpf_sk_storage_get(
            map_of(&SOCKET_SERVICES),
            socket,
            ptr::null_mut(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
        .cast::<Translations>()
        .as_mut()
    }
}

#[inline(always)]
fn map_of<T>(map: &'static T) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}
