//! System calls for which no library has a safe form.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{IoUring, opcode, types};

/// Allows as many open files as the hard limit, or a million where root may raise it.
pub fn raise_file_limit() {
    const WANTED: libc::rlim_t = 1 << 20;
    for (soft, hard) in [(WANTED, WANTED), (libc::rlim_t::MAX, libc::rlim_t::MAX)] {
        let mut limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: both calls get a valid `rlimit`.
        unsafe {
            if soft == libc::rlim_t::MAX {
                libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
                limit.rlim_cur = limit.rlim_max;
            }
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0 {
                return;
            }
        }
    }
}

/// The first bytes of a buffer that a system call has filled.
pub fn initialized(buffer: &[MaybeUninit<u8>], count: usize) -> &[u8] {
    let count = count.min(buffer.len());
    // SAFETY: the kernel has written `count` bytes, and they live as long as the buffer.
    unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast(), count) }
}

/// Sends an IPv4 packet as an Ethernet frame by way of AF_PACKET (packet(7)).
pub fn send_frame(interface: &str, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let interface = CString::new(interface)?;
    // SAFETY: plain system calls; the name is a C string, the address is a whole `sockaddr_ll`,
    // and the new descriptor is owned by nobody else.
    unsafe {
        let index = libc::if_nametoindex(interface.as_ptr());
        let protocol = (libc::ETH_P_IP as u16).to_be();
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(protocol));
        if index == 0 || socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index as i32;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&to);
        let sent = libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Sets SO_RCVLOWAT: a reader is woken when so many bytes are there.
pub fn set_low_water_mark(stream: &TcpStream, bytes: i32) -> io::Result<()> {
    // SAFETY: the option takes an `int`, and gets one.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<i32>() as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends by io_uring.
pub fn ring_send(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let entry = opcode::Send::new(types::Fd(stream.as_raw_fd()), bytes.as_ptr(), length).build();
    // SAFETY: the entry refers to `bytes`, which outlive the wait for its completion.
    unsafe { complete(&entry) }
}

/// Receives by io_uring.
pub fn ring_receive(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
    let entry =
        opcode::Recv::new(types::Fd(stream.as_raw_fd()), buffer.as_mut_ptr(), length).build();
    // SAFETY: the entry refers to `buffer`, which outlives the wait for its completion.
    unsafe { complete(&entry) }
}

/// Submits one entry, and waits for its completion.
///
/// # Safety
/// What the entry refers to must be valid until this returns.
unsafe fn complete(entry: &io_uring::squeue::Entry) -> io::Result<usize> {
    let mut ring = IoUring::new(2)?;
    // SAFETY: the caller's promise.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(-libc::EIO, |completion| completion.result());
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Blocks signals, for [`await_signal`].
pub fn block(signals: &[i32]) -> io::Result<libc::sigset_t> {
    // SAFETY: a set is initialised by `sigemptyset` before its first use, and lives on the stack.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        match libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits for one of the signals that are blocked.
pub fn await_signal(signals: &libc::sigset_t) -> io::Result<i32> {
    let mut signal = 0;
    // SAFETY: both pointers are to values that outlive the call.
    match unsafe { libc::sigwait(signals, &raw mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
