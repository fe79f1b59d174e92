//! Established connections that a new policy forbids: found, marked, and cut.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use aya::Ebpf;
use aya::maps::MapData;
use rustix::time::{ClockId, clock_gettime};
use weft_common::{
    CONNECTION_ACCELERATE, CONNECTION_ACCEPTED, CONNECTION_CLIENT_LOW, CONNECTION_CUT,
    CONNECTION_FROM_PROXY, CONNECTION_PROVEN, CONNECTION_TO_PROXY, Connection, ConnectionKey,
    FLOW_ACCELERATED, FLOW_EGRESS, FLOW_PROVEN, FlowEvent, FlowKind, Judged, SocketKey,
};

use super::sockets::{Holder, NamedSocket};
use super::system::{self, IteratorOutput, Target};
use super::{Kernel, KernelError, OpenError, cgroups, open_map, programs};

/// The program.
const PROGRAM: &str = "judge_connections";
const CONNECTIONS: &str = "CONNECTIONS";
/// What the program writes of one connection.
const JUDGED_SIZE: usize = size_of::<Judged>() + size_of::<Connection>();
/// So many connections are cut at a time.
const BATCH: usize = 64;
/// More threads would only wait for each other in the kernel.
const THREADS: usize = 4;

/// Loads the program that judges all connections, ready to run.
pub(super) fn load_judge(
    ebpf: &mut Ebpf,
    map: impl FnOnce(&'static str) -> Result<MapData, OpenError>,
) -> Result<OwnedFd, OpenError> {
    let connections = map(CONNECTIONS)?;
    let over = Target::Map(connections.fd().as_fd());
    let attached = programs::load_iterator(ebpf, PROGRAM, "bpf_map_elem", over);
    attached.map_err(|source| OpenError::Attach {
        name: PROGRAM.to_owned(),
        to: format!("map {CONNECTIONS}"),
        source,
    })
}

/// A connection that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutConnection {
    /// Its endpoints as they are on the wire.
    pub key: ConnectionKey,
    /// Its record, with the decision that forbids it.
    pub connection: Connection,
}

impl CutConnection {
    /// The flow event that reports it.
    fn event(&self) -> FlowEvent {
        let Connection { origin, server, decision, generation, path, flags, .. } = self.connection;
        let has = |flag| flags & flag != 0;
        let mut event_flags = 0;
        if !has(CONNECTION_ACCEPTED | CONNECTION_FROM_PROXY) {
            event_flags |= FLOW_EGRESS;
        }
        if has(CONNECTION_PROVEN) {
            event_flags |= FLOW_PROVEN;
        }
        if has(CONNECTION_ACCELERATE) {
            event_flags |= FLOW_ACCELERATED;
        }
        FlowEvent {
            time: programs_now(),
            source: origin.source,
            destination: origin.backend,
            dialled: origin.destination,
            source_pod: origin.pod,
            destination_pod: server,
            decision,
            kind: FlowKind::Cut as u8,
            path,
            protocol: libc::IPPROTO_TCP as u8,
            flags: event_flags,
            bytes_out: 0,
            bytes_in: 0,
            duration: 0,
            generation,
            unused: 0,
        }
    }
}

impl Kernel {
    /// Cuts the established connections that are forbidden by what is in the kernel now: to be
    /// called after [`Kernel::apply`], and for a while from time to time, for those that were being
    /// admitted meanwhile. The programs judge and mark them, so that their bytes are refused; then
    /// their sockets are destroyed, and their processes get ECONNABORTED or, where the other end was
    /// first, ECONNRESET.
    ///
    /// Each is reported once, as an event of [`super::FlowEvents`].
    ///
    /// # Errors
    /// If the connections cannot be read, or sockets not be destroyed. What was judged is marked all
    /// the same, and the programs judge the others with their next bytes.
    pub fn cut_forbidden(&mut self) -> Result<Vec<CutConnection>, KernelError> {
        let started = Instant::now();
        let mut first = self.cut_once()?;
        let first_us = started.elapsed().as_micros();
        if !first.cut.is_empty() {
            if first.unknown {
                self.prepare_to_cut()?;
            }
            // Whose other end is not on this node, or has not seen the reset. And a record may be
            // passed over while others of its bucket go.
            let second = self.cut_once()?;
            first.cut.extend(second.cut.into_iter().filter(|(_, now)| *now));
        }
        tracing::debug!(
            cut = first.cut.len(),
            first_us,
            total_us = started.elapsed().as_micros(),
            "forbidden connections"
        );
        Ok(first.cut.into_iter().map(|(cut, _)| cut).collect())
    }

    /// Has the programs judge what has not been judged under this policy, and destroys one socket of
    /// each forbidden connection: that resets the other. The work begins with the first that is
    /// found.
    fn cut_once(&self) -> Result<Pass, KernelError> {
        let failed = |source| KernelError::new("cannot judge the connections", source);
        let output = Mutex::new(IteratorOutput::begin(&self.judge).map_err(failed)?);
        let work = || self.cut_batches(&output);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut pass = work();
            for other in others {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                pass = match (pass, other) {
                    (Ok(pass), Ok(other)) => Ok(pass.and(other)),
                    (pass, other) => pass.and(other),
                };
            }
            pass
        })
    }

    /// One thread's part.
    fn cut_batches(&self, output: &Mutex<IteratorOutput>) -> Result<Pass, KernelError> {
        let failed = |source| KernelError::new("cannot judge the connections", source);
        let mut buffer = [0; BATCH * JUDGED_SIZE];
        let mut pass = Pass::default();
        let mut result = Ok(());
        loop {
            let read = {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                // Whole ones only: the kernel stops when as much has been written as was asked for.
                output.read(&mut buffer).map_err(failed)?
            };
            if read == 0 {
                return result.map(|()| pass);
            }
            let judged = buffer.get(..read).unwrap_or_default().chunks_exact(JUDGED_SIZE);
            let cut: Vec<_> =
                judged.filter_map(|judged| forbidden(judged, self.in_force.generation)).collect();
            for (cut, _) in cut.iter().filter(|(_, now)| *now) {
                self.cut_events.push(cut.event());
            }
            let mut sockets: BTreeMap<Holder, Vec<NamedSocket>> = BTreeMap::new();
            for (cut, _) in &cut {
                let known = |holder: &Holder| self.sockets.knows(*holder);
                pass.unknown |= ends(cut).any(|(holder, _)| !known(&holder));
                if let Some((holder, socket)) = ends(cut).find(|(holder, _)| known(holder)) {
                    sockets.entry(holder).or_default().push(socket);
                }
            }
            for (holder, sockets) in sockets {
                result = result.and(self.sockets.destroy(holder, &sockets).map_err(|source| {
                    let whose = match holder {
                        Holder::Pod(pod) => format!("pod {pod}"),
                        Holder::Proxy => "the proxy".to_owned(),
                    };
                    KernelError::new(format!("cannot destroy sockets of {whose}"), source)
                }));
            }
            pass.cut.extend(cut);
        }
    }

    /// The TCP connections that have a record now.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn list_connections(&self) -> Result<Vec<(ConnectionKey, Connection)>, KernelError> {
        let failed = |source| KernelError::new("cannot read the map CONNECTIONS", source);
        let map =
            open_map(&self.pins, CONNECTIONS).map_err(|error| failed(io::Error::other(error)))?;
        let mut found = Vec::new();
        system::read_hash(map.fd(), |key, connection| found.push((*key, *connection)))
            .map_err(failed)?;
        Ok(found)
    }

    /// Opens what is needed to cut connections in the namespaces of all bound pods, so that it
    /// is at hand when it has to be fast. Pods without a process are left out until they have one.
    ///
    /// # Errors
    /// If the cgroups cannot be read. A pod that goes away meanwhile is none.
    pub fn prepare_to_cut(&mut self) -> Result<(), KernelError> {
        let pods = cgroups::find_pods(&self.options.pods_cgroup).map_err(|source| {
            KernelError::new(
                format!("cannot read the cgroups below {}", self.options.pods_cgroup.display()),
                source,
            )
        })?;
        for cgroup in pods {
            let Some(pod) = self.tables.cgroups.installed().get(&cgroup.id) else { continue };
            if let Err(error) = self.sockets.prepare(*pod, &cgroup.path) {
                tracing::debug!(uid = %cgroup.uid, %error, "cannot enter a pod's namespace");
            }
        }
        self.sockets
            .prepare_proxy()
            .map_err(|source| KernelError::new("cannot look at sockets of the proxy", source))
    }
}

/// What has been found on one way through all connections.
#[derive(Debug, Default)]
struct Pass {
    /// The forbidden ones, and whether they were found just now.
    cut: Vec<(CutConnection, bool)>,
    /// Whether one has a socket in a namespace that is not known.
    unknown: bool,
}

impl Pass {
    fn and(mut self, other: Self) -> Self {
        self.cut.extend(other.cut);
        self.unknown |= other.unknown;
        self
    }
}

/// A connection that is to be cut, of what the program has written, and whether it has just been
/// found.
fn forbidden(bytes: &[u8], generation: u32) -> Option<(CutConnection, bool)> {
    let (judged, connection) = bytes.split_at_checked(size_of::<Judged>())?;
    let Judged { key, decision, now } = system::from_bytes(judged)?;
    let connection: Connection = system::from_bytes(connection)?;
    let now = now != 0;
    if now && decision.allows() {
        return None;
    }
    let connection = if now {
        let flags = connection.flags | CONNECTION_CUT;
        Connection { decision, generation, flags, ..connection }
    } else {
        connection
    };
    Some((CutConnection { key, connection }, now))
}

/// The programs' clock (`bpf_ktime_get_ns`).
fn programs_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The sockets of a connection that are on this node, the client's first.
fn ends(one: &CutConnection) -> impl Iterator<Item = (Holder, NamedSocket)> {
    let CutConnection { key, connection } = one;
    let flags = connection.flags;
    let low = SocketKey {
        local: key.low,
        remote: key.high,
        local_port: key.low_port,
        remote_port: key.high_port,
    };
    // What has closed, or is not on this node, has no socket.
    let low_socket = (connection.low_sock != 0)
        .then_some(NamedSocket { key: low, cookie: connection.low_cookie });
    let high_socket = (connection.high_sock != 0)
        .then_some(NamedSocket { key: low.reversed(), cookie: connection.high_cookie });
    let (client, server) = if flags & CONNECTION_CLIENT_LOW != 0 {
        (low_socket, high_socket)
    } else {
        (high_socket, low_socket)
    };
    let holder = |proxy, pod| if flags & proxy != 0 { Holder::Proxy } else { Holder::Pod(pod) };
    let client = client.map(|one| (holder(CONNECTION_FROM_PROXY, connection.origin.pod), one));
    let server = server.map(|one| (holder(CONNECTION_TO_PROXY, connection.server), one));
    client.into_iter().chain(server)
}
