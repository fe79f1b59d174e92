//! Destroying sockets of pods from outside (`SOCK_DESTROY`, sock_diag(7)).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use weft_common::{Address, PodId, SocketKey};

use super::netlink::{Netlink, Request};
use super::{cgroups, namespace};

/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `INET_DIAG_NOCOOKIE`
const NO_COOKIE: u32 = u32::MAX;
/// As many answers fit a socket's default receive buffer.
const BATCH: usize = 128;

/// What came of destroying sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Destroyed {
    /// So many are destroyed.
    pub destroyed: usize,
    /// So many were gone already.
    pub gone: usize,
}

/// Netlink sockets in the pods' network namespaces, kept open: a connection that has to be cut
/// must not wait for a namespace to be looked for.
#[derive(Debug, Default)]
pub(super) struct PodSockets {
    pods: BTreeMap<PodId, Netlink>,
    own: Option<Netlink>,
}

impl PodSockets {
    /// Makes ready to destroy sockets of a pod; nothing while it has no process.
    pub(super) fn prepare(&mut self, pod: PodId, cgroup: &Path) -> io::Result<()> {
        if self.pods.contains_key(&pod) {
            return Ok(());
        }
        if let Some(pid) = cgroups::find_process(cgroup)? {
            let namespace = namespace::of_process(pid)?;
            let netlink = namespace::inside(&namespace, Netlink::sock_diag)?;
            self.pods.insert(pod, netlink);
        }
        Ok(())
    }

    /// Whether sockets of the pod can be destroyed.
    pub(super) fn knows(&self, pod: PodId) -> bool {
        self.pods.contains_key(&pod)
    }

    /// Lets go of a pod's namespace.
    pub(super) fn forget(&mut self, pod: PodId) {
        self.pods.remove(&pod);
    }

    /// Destroys TCP sockets of a pod. Without a process in the pod there are none.
    pub(super) fn destroy_in(
        &mut self,
        pod: PodId,
        sockets: &[SocketKey],
    ) -> io::Result<Destroyed> {
        match self.pods.get_mut(&pod) {
            Some(netlink) => destroy(netlink, sockets),
            None => Ok(Destroyed { destroyed: 0, gone: sockets.len() }),
        }
    }

    /// Destroys TCP sockets in the agent's own namespace: the proxy's.
    pub(super) fn destroy_here(&mut self, sockets: &[SocketKey]) -> io::Result<Destroyed> {
        if self.own.is_none() {
            self.own = Some(Netlink::sock_diag()?);
        }
        match &mut self.own {
            Some(netlink) => destroy(netlink, sockets),
            None => Ok(Destroyed::default()),
        }
    }
}

fn destroy(netlink: &mut Netlink, sockets: &[SocketKey]) -> io::Result<Destroyed> {
    let mut result = Destroyed::default();
    for sockets in sockets.chunks(BATCH) {
        let bodies: Vec<[u8; 56]> = sockets.iter().map(request).collect();
        let requests: Vec<Request<'_>> =
            bodies.iter().map(|body| Request { kind: DESTROY, body }).collect();
        for answer in netlink.execute(&requests)? {
            match answer {
                Ok(()) => result.destroyed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => result.gone += 1,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(result)
}

/// A `struct inet_diag_req_v2` that names one TCP socket.
fn request(socket: &SocketKey) -> [u8; 56] {
    let family = if socket.local.is_v4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut body = [0; 56];
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
