//! Netlink, as far as the agent needs it: requests, dumps and attributes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with, sockopt,
};

/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLM_F_ROOT | NLM_F_MATCH`
const DUMP: u16 = 0x300;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;
const HEADER: usize = 16;

/// A netlink socket. It stays in the network namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A socket that the kernel sends notifications to: that there are any is all that is read of them.
#[derive(Debug)]
pub(super) struct Notifications(OwnedFd);

impl Notifications {
    /// Of the routing family, for `groups` (`RTMGRP_…`), in the calling thread's network namespace.
    pub(super) fn route(groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Reads what waits: [`io::ErrorKind::WouldBlock`] if there is nothing.
    pub(super) fn take(&self) -> io::Result<()> {
        let mut read = false;
        loop {
            match recv(&self.0, &mut [0u8; 1], RecvFlags::empty()) {
                // Some were lost where they were too many: something has happened all the same.
                Ok(_) | Err(Errno::NOBUFS) => read = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if read => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Notifications {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What is asked.
pub(super) struct Request<'a> {
    /// The message type.
    pub kind: u16,
    /// The fixed part and the attributes.
    pub body: &'a [u8],
}

impl Netlink {
    /// A socket of the routing family, in the calling thread's network namespace.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// A socket for socket diagnosis, in the calling thread's network namespace.
    pub(super) fn sock_diag() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::SOCK_DIAG))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // Answers to a batch of requests wait here until they are read.
        sockopt::set_socket_recv_buffer_size(&socket, 1 << 20)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for everything of a kind, and gives each answer (type and body) to `each`.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let sequence = self.request(kind, body, DUMP)?;
        loop {
            let mut finished = false;
            self.receive(|header, body| {
                if header.sequence != sequence || finished {
                    return Ok(());
                }
                match header.kind {
                    DONE => finished = true,
                    ERROR => error_of(body)?,
                    kind => each(kind, body),
                }
                Ok(())
            })?;
            if finished {
                return Ok(());
            }
        }
    }

    /// Asks for one thing: its type and body.
    pub(super) fn get(&mut self, kind: u16, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let sequence = self.request(kind, body, 0)?;
        loop {
            let mut answer = None;
            self.receive(|header, body| {
                if header.sequence == sequence {
                    if header.kind == ERROR {
                        error_of(body)?;
                    }
                    answer = Some((header.kind, body.to_vec()));
                }
                Ok(())
            })?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    /// Sends several requests at once, and returns the errors of those that failed. Threads may do
    /// so at the same time, and may get one another's errors: the kernel has carried out the
    /// requests when they are sent, and answers where one has failed.
    pub(super) fn execute(&self, requests: &[Request<'_>]) -> io::Result<Vec<io::Error>> {
        self.send(requests, 0, 0)?;
        let mut errors = Vec::new();
        while self.receive_some(RecvFlags::DONTWAIT, |header, body| {
            if header.kind == ERROR {
                errors.extend(error_of(body).err());
            }
            Ok(())
        })? {}
        Ok(errors)
    }

    fn send(&self, requests: &[Request<'_>], flags: u16, sequence: u32) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(requests.len() * 128);
        for request in requests {
            let length = (HEADER + request.body.len()) as u32;
            buffer.extend_from_slice(&length.to_ne_bytes());
            buffer.extend_from_slice(&request.kind.to_ne_bytes());
            buffer.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
            buffer.extend_from_slice(&sequence.to_ne_bytes());
            buffer.extend_from_slice(&0u32.to_ne_bytes());
            buffer.extend_from_slice(request.body);
            buffer.resize(buffer.len().next_multiple_of(4), 0);
        }
        sendto(&self.socket, &buffer, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// Asks for something whose answers have the sequence number that is returned.
    fn request(&mut self, kind: u16, body: &[u8], flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&[Request { kind, body }], flags, self.sequence)?;
        Ok(self.sequence)
    }

    fn receive(&self, each: impl FnMut(Header, &[u8]) -> io::Result<()>) -> io::Result<()> {
        self.receive_some(RecvFlags::empty(), each).map(drop)
    }

    /// False if there was nothing to be received without waiting.
    fn receive_some(
        &self,
        flags: RecvFlags,
        mut each: impl FnMut(Header, &[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let mut buffer = vec![0u8; 1 << 16];
        let (_, length) = match recv(&self.socket, &mut buffer, flags | RecvFlags::TRUNC) {
            Err(Errno::AGAIN) => return Ok(false),
            received => received?,
        };
        if length > buffer.len() {
            return Err(io::Error::other("a netlink message is longer than 64 KiB"));
        }
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some(header) = Header::read(rest) {
            let length = header.length as usize;
            let Some(body) = rest.get(HEADER..length) else { break };
            each(header, body)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(true)
    }
}

#[derive(Clone, Copy)]
struct Header {
    length: u32,
    kind: u16,
    sequence: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            length: u32_at(bytes, 0)?,
            kind: u16_at(bytes, 4)?,
            sequence: u32_at(bytes, 8)?,
        })
    }
}

fn error_of(body: &[u8]) -> io::Result<()> {
    match u32_at(body, 0) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error((code as i32).saturating_neg())),
        None => Err(io::Error::other("a netlink error without a code")),
    }
}

/// The attributes in `bytes`: type and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        // The two highest bits say that it is nested, and in network byte order.
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends an attribute.
pub(super) fn push_attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The two bytes at `offset`, in the machine's order.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// The four bytes at `offset`, in the machine's order.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}
