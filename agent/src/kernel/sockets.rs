//! Destroying sockets of pods from outside (`SOCK_DESTROY`, sock_diag(7)).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use weft_common::{Address, PodId, SocketKey};

use super::netlink::{Netlink, Request};
use super::{cgroups, namespace};

/// Size of a `struct inet_diag_req_v2`.
const REQUEST_SIZE: usize = 56;
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;

/// Whose network namespace a socket is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// A pod's.
    Pod(PodId),
    /// The agent's own, which is the proxy's.
    Proxy,
}

/// A TCP socket, by what nothing else has: by its addresses and ports alone the kernel would find,
/// in place of one that has just closed, the listener that it came from, and destroy that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedSocket {
    pub key: SocketKey,
    /// `SO_COOKIE`
    pub cookie: u64,
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

    /// The same for the proxy's.
    pub(super) fn prepare_proxy(&mut self) -> io::Result<()> {
        if !self.knows(Holder::Proxy) {
            self.namespaces.insert(Holder::Proxy, Netlink::sock_diag()?);
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

    /// Destroys TCP sockets of a holder; none where its namespace is not known. One that has closed
    /// is none.
    pub(super) fn destroy(&self, holder: Holder, sockets: &[NamedSocket]) -> io::Result<()> {
        let Some(netlink) = self.namespaces.get(&holder) else { return Ok(()) };
        let bodies: Vec<_> = sockets.iter().map(request).collect();
        let requests: Vec<_> = bodies.iter().map(|body| Request { kind: DESTROY, body }).collect();
        let failed = netlink.execute(&requests)?.into_iter().find(|error| !is_gone(error));
        failed.map_or(Ok(()), Err)
    }
}

/// The socket is not there, or another is in its place.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESTALE)
}

/// A `struct inet_diag_req_v2` that names one TCP socket.
fn request(socket: &NamedSocket) -> [u8; REQUEST_SIZE] {
    let NamedSocket { key, cookie } = socket;
    let family = if key.local.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = [0; REQUEST_SIZE];
    let mut fields = body.chunks_exact_mut(4);
    let mut push = |word: [u8; 4]| {
        if let Some(field) = fields.next() {
            field.copy_from_slice(&word);
        }
    };
    push([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    push(u32::MAX.to_ne_bytes());
    let [local, remote] = [key.local_port, key.remote_port].map(u16::to_be_bytes);
    push([local[0], local[1], remote[0], remote[1]]);
    for address in [key.local, key.remote] {
        for word in words(address) {
            push(word);
        }
    }
    // Any interface.
    push([0; 4]);
    push((*cookie as u32).to_ne_bytes());
    push(((cookie >> 32) as u32).to_ne_bytes());
    body
}

/// An address as netlink has it: four words, of which IPv4 uses the first.
fn words(address: Address) -> [[u8; 4]; 4] {
    match IpAddr::from(address) {
        IpAddr::V4(v4) => [v4.octets(), [0; 4], [0; 4], [0; 4]],
        IpAddr::V6(_) => address.0.map(u32::to_ne_bytes),
    }
}
