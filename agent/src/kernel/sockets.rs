//! Destroying sockets of pods from outside (`SOCK_DESTROY`, sock_diag(7)).

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use weft_common::{Address, PodId, SocketKey};

use super::netlink::{Netlink, Request, u32_at};
use super::{cgroups, namespace};

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = 20;
/// Size of a `struct inet_diag_req_v2`, and where its ports and its cookie are.
const REQUEST_SIZE: usize = 56;
const REQUESTED_PORTS: Range<usize> = 8..12;
const COOKIE: usize = 48;
/// Where ports and cookie are in a `struct inet_diag_msg`.
const PORTS: Range<usize> = 4..8;
const ANSWERED_COOKIE: Range<usize> = 44..52;
/// States of sockets that have a connection: all but listening ones, and those that are only
/// remembered (`TCP_LISTEN`, `TCP_TIME_WAIT`, `TCP_NEW_SYN_RECV`).
const CONNECTED: u32 = !(1 << 10 | 1 << 6 | 1 << 12);
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `INET_DIAG_NOCOOKIE`
const NO_COOKIE: u32 = u32::MAX;
/// As many answers fit a socket's default receive buffer.
const BATCH: usize = 128;
/// So many sockets of a namespace are found faster in a list of all than one by one.
const MANY: usize = 256;

/// Whose network namespace a socket is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A pod's.
    Pod(PodId),
    /// The agent's own, which is the proxy's.
    Proxy,
}

/// Netlink sockets in the pods' network namespaces, kept open: a connection that has to be cut
/// must not wait for a namespace to be looked for.
#[derive(Debug, Default)]
pub(super) struct PodSockets {
    namespaces: BTreeMap<Holder, Netlink>,
}

impl PodSockets {
    /// Makes ready to destroy sockets of a pod; nothing while it has no process.
    pub(super) fn prepare(&mut self, pod: PodId, cgroup: &Path) -> io::Result<()> {
        if self.knows(Holder::Pod(pod)) {
            return Ok(());
        }
        if let Some(pid) = cgroups::find_process(cgroup)? {
            let namespace = namespace::of_process(pid)?;
            let netlink = namespace::inside(&namespace, Netlink::sock_diag)?;
            self.namespaces.insert(Holder::Pod(pod), netlink);
        }
        Ok(())
    }

    /// Whether its sockets can be destroyed.
    pub(super) fn knows(&self, holder: Holder) -> bool {
        self.namespaces.contains_key(&holder)
    }

    /// Lets go of a pod's namespace.
    pub(super) fn forget(&mut self, pod: PodId) {
        self.namespaces.remove(&Holder::Pod(pod));
    }

    /// Destroys TCP sockets, in several namespaces at once. A pod without a process has none.
    /// A namespace that fails does not keep the others from being served: the first error is
    /// returned when all are done.
    pub(super) fn destroy(
        &mut self,
        sockets: &BTreeMap<Holder, Vec<SocketKey>>,
    ) -> Result<(), (Holder, io::Error)> {
        if sockets.contains_key(&Holder::Proxy) && !self.knows(Holder::Proxy) {
            let netlink = Netlink::sock_diag().map_err(|error| (Holder::Proxy, error))?;
            self.namespaces.insert(Holder::Proxy, netlink);
        }
        let work: Vec<_> = self
            .namespaces
            .iter_mut()
            .filter_map(|(holder, netlink)| Some((*holder, netlink, sockets.get(holder)?)))
            .collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(work.len());
        let work = Mutex::new(work);
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let serve = || {
            let mut first = Ok(());
            while let Some((holder, netlink, sockets)) = next() {
                first = first.and(destroy(netlink, sockets).map_err(|error| (holder, error)));
            }
            first
        };
        std::thread::scope(|scope| {
            let serving: Vec<_> = (0..threads).map(|_| scope.spawn(serve)).collect();
            let served: Vec<_> = serving
                .into_iter()
                .map(|thread| {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect();
            served.into_iter().collect()
        })
    }
}

fn destroy(netlink: &mut Netlink, sockets: &[SocketKey]) -> io::Result<()> {
    let bodies =
        if sockets.len() < MANY { named(netlink, sockets)? } else { listed(netlink, sockets)? };
    for bodies in bodies.chunks(BATCH) {
        let requests: Vec<Request<'_>> =
            bodies.iter().map(|body| Request { kind: DESTROY, body }).collect();
        let failed = netlink.execute(&requests)?.into_iter().find(|error| !is_gone(error));
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}

/// Requests with the cookies of sockets that are there. By addresses and ports alone the kernel
/// would find, in place of a connection that has just closed, the listener that it came from, and
/// destroy that. The sockets are asked for one by one.
fn named(netlink: &mut Netlink, sockets: &[SocketKey]) -> io::Result<Vec<[u8; REQUEST_SIZE]>> {
    let mut found = Vec::with_capacity(sockets.len());
    for sockets in sockets.chunks(BATCH) {
        let bodies: Vec<[u8; REQUEST_SIZE]> = sockets.iter().map(request).collect();
        let requests: Vec<Request<'_>> =
            bodies.iter().map(|body| Request { kind: BY_FAMILY, body }).collect();
        for (body, answer) in bodies.iter().zip(netlink.ask(&requests)?) {
            let answer = match answer {
                Err(error) if is_gone(&error) => continue,
                answer => answer?,
            };
            let (Some(ports), Some(cookie)) = (answer.get(PORTS), answer.get(ANSWERED_COOKIE))
            else {
                return Err(io::Error::other("an answer about a socket is too short"));
            };
            // A listener has no remote port.
            if body.get(REQUESTED_PORTS) == Some(ports) {
                found.push(with_cookie(*body, cookie));
            }
        }
    }
    Ok(found)
}

/// The same, from a list of all connections of the namespace: much faster for many.
fn listed(netlink: &mut Netlink, sockets: &[SocketKey]) -> io::Result<Vec<[u8; REQUEST_SIZE]>> {
    let mut wanted: HashSet<SocketKey> = sockets.iter().copied().collect();
    let mut found = Vec::with_capacity(sockets.len());
    // Sockets of the family IPv6 may have connections over IPv4.
    for family in [libc::AF_INET, libc::AF_INET6] {
        if wanted.is_empty() {
            break;
        }
        let mut all = [0; REQUEST_SIZE];
        if let Some(header) = all.first_chunk_mut::<8>() {
            let [a, b, c, d] = CONNECTED.to_ne_bytes();
            *header = [family as u8, libc::IPPROTO_TCP as u8, 0, 0, a, b, c, d];
        }
        netlink.dump(BY_FAMILY, &all, |_, answer| {
            if let Some(socket) = answered(answer)
                && wanted.remove(&socket)
                && let Some(cookie) = answer.get(ANSWERED_COOKIE)
            {
                found.push(with_cookie(request(&socket), cookie));
            }
        })?;
    }
    Ok(found)
}

/// The endpoints in an answer (`struct inet_diag_msg`).
fn answered(answer: &[u8]) -> Option<SocketKey> {
    let port = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let v4 = i32::from(*answer.first()?) == libc::AF_INET;
    let address = |at: usize| {
        let mut words = [0; 4];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u32_at(answer, at + 4 * index)?;
        }
        Some(if v4 { Address::from_v4(words[0]) } else { Address(words) })
    };
    Some(SocketKey {
        local: address(8)?,
        remote: address(24)?,
        local_port: port(4)?,
        remote_port: port(6)?,
    })
}

fn with_cookie(mut body: [u8; REQUEST_SIZE], cookie: &[u8]) -> [u8; REQUEST_SIZE] {
    for (to, from) in body.iter_mut().skip(COOKIE).zip(cookie) {
        *to = *from;
    }
    body
}

/// The socket is not there, or another is in its place.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESTALE)
}

/// A `struct inet_diag_req_v2` that names one TCP socket.
fn request(socket: &SocketKey) -> [u8; REQUEST_SIZE] {
    let family = if socket.local.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = [0; REQUEST_SIZE];
    let mut fields = body.chunks_exact_mut(4);
    let mut push = |word: [u8; 4]| {
        if let Some(field) = fields.next() {
            field.copy_from_slice(&word);
        }
    };
    push([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    push(u32::MAX.to_ne_bytes());
    let [local, remote] = [socket.local_port, socket.remote_port].map(u16::to_be_bytes);
    push([local[0], local[1], remote[0], remote[1]]);
    for address in [socket.local, socket.remote] {
        for word in words(address) {
            push(word);
        }
    }
    // Any interface.
    push([0; 4]);
    push(NO_COOKIE.to_ne_bytes());
    push(NO_COOKIE.to_ne_bytes());
    body
}

/// An address as netlink has it: four words, of which IPv4 uses the first.
fn words(address: Address) -> [[u8; 4]; 4] {
    match IpAddr::from(address) {
        IpAddr::V4(v4) => [v4.octets(), [0; 4], [0; 4], [0; 4]],
        IpAddr::V6(_) => address.0.map(u32::to_ne_bytes),
    }
}
