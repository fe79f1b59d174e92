//! Established connections that a new policy forbids: found, marked, and cut.

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use aya::maps::{HashMap, Map, MapData};
use rustix::time::{ClockId, clock_gettime};
use weft_common::{
    CONNECTION_ACCELERATE, CONNECTION_ACCEPTED, CONNECTION_CLIENT_LOW, CONNECTION_CUT,
    CONNECTION_FROM_PROXY, CONNECTION_PROVEN, CONNECTION_TO_PROXY, Connection, ConnectionKey,
    FLOW_ACCELERATED, FLOW_EGRESS, FLOW_PROVEN, FlowEvent, FlowKind, SocketKey,
};

use super::judgement::Judge;
use super::sockets::Holder;
use super::{Kernel, KernelError, cgroups, open_map, system};

/// `BPF_EXIST`: a record that is gone by now must not come back.
const ONLY_OLD: u64 = 2;
const CONNECTIONS: &str = "CONNECTIONS";

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
    /// called after [`Kernel::apply`]. They are marked first, so that the programs refuse their
    /// bytes; then their sockets are destroyed, and their processes get ECONNABORTED or, where the
    /// other end was first, ECONNRESET.
    ///
    /// Each is reported once, as an event of [`super::FlowEvents`].
    ///
    /// Connections that remain allowed are not touched; the programs judge them anew with their
    /// next bytes.
    ///
    /// # Errors
    /// If the connections cannot be read, or sockets not be destroyed. They are marked all the
    /// same, so no more bytes pass.
    pub fn cut_forbidden(&mut self) -> Result<Vec<CutConnection>, KernelError> {
        let since = std::mem::replace(&mut self.judged, programs_now());
        self.cut(0).inspect_err(|_| self.judged = since)
    }

    /// The same for connections that were being admitted while [`Kernel::cut_forbidden`] was at
    /// work, and for those that the programs have found to be forbidden: to be called for a while
    /// after it.
    ///
    /// # Errors
    /// As [`Kernel::cut_forbidden`].
    pub fn cut_late(&mut self) -> Result<Vec<CutConnection>, KernelError> {
        self.cut(self.judged)
    }

    /// Judges connections that were opened at this time or later.
    fn cut(&mut self, opened: u64) -> Result<Vec<CutConnection>, KernelError> {
        let mut map = self.connections()?;
        let generation = self.in_force.generation;
        let started = Instant::now();
        let mut found = Vec::new();
        // The programs have found, marked and reported some themselves, but they can only refuse
        // bytes: the processes are not told.
        let mut marked = Vec::new();
        let judge = Judge::new(&self.tables);
        read_all(&map, |key, connection| {
            if connection.flags & CONNECTION_CUT != 0 {
                marked.push(CutConnection { key: *key, connection: *connection });
            } else if connection.generation != generation && connection.opened >= opened {
                let decision = judge.connection(connection);
                if !decision.allows() {
                    let flags = connection.flags | CONNECTION_CUT;
                    let connection = Connection { decision, generation, flags, ..*connection };
                    found.push(CutConnection { key: *key, connection });
                }
            }
        })?;
        let judged = started.elapsed();
        for one in found {
            // In the meantime it may have been closed, or marked.
            match map.get(&one.key, 0) {
                Ok(now) if now.flags & CONNECTION_CUT != 0 => marked.push(one),
                Ok(now) => {
                    // Its sockets, and what is counted, may have changed since it was read.
                    let Connection { decision, generation, .. } = one.connection;
                    let flags = now.flags | CONNECTION_CUT;
                    let marks = Connection { decision, generation, flags, ..now };
                    if map.insert(one.key, marks, ONLY_OLD).is_ok() {
                        self.cut_events.push(one.event());
                        marked.push(one);
                    }
                }
                Err(_) => {}
            }
        }
        let all_marked = started.elapsed();
        self.destroy(&marked)?;
        tracing::debug!(
            cut = marked.len(),
            judged_us = judged.as_micros(),
            marked_us = (all_marked - judged).as_micros(),
            destroyed_us = (started.elapsed() - all_marked).as_micros(),
            "forbidden connections"
        );
        Ok(marked)
    }

    /// The TCP connections that have a record now.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn list_connections(&self) -> Result<Vec<(ConnectionKey, Connection)>, KernelError> {
        let mut found = Vec::new();
        read_all(&self.connections()?, |key, connection| found.push((*key, *connection)))?;
        Ok(found)
    }

    fn connections(&self) -> Result<ConnectionMap, KernelError> {
        let failed = |source: io::Error| KernelError::new("cannot use the map CONNECTIONS", source);
        let map =
            open_map(&self.pins, CONNECTIONS).map_err(|error| failed(io::Error::other(error)))?;
        Map::from_map_data(map)
            .and_then(HashMap::try_from)
            .map_err(|error| failed(io::Error::other(error)))
    }

    fn destroy(&mut self, cut: &[CutConnection]) -> Result<(), KernelError> {
        // A socket that is destroyed resets its peer. So of two ends on this node one is destroyed
        // first, of every other connection the client's, of the rest the server's: their
        // namespaces share the work. Then what is left of the others.
        let mut first: BTreeMap<Holder, Vec<SocketKey>> = BTreeMap::new();
        let mut second: BTreeMap<Holder, Vec<SocketKey>> = BTreeMap::new();
        for (number, one) in cut.iter().enumerate() {
            let mut ends: Vec<_> = ends(one).collect();
            if number % 2 == 1 {
                ends.reverse();
            }
            for (round, (holder, socket)) in [&mut first, &mut second].into_iter().zip(ends) {
                round.entry(holder).or_default().push(socket);
            }
        }
        let unknown =
            |holder: &Holder| matches!(holder, Holder::Pod(_)) && !self.sockets.knows(*holder);
        if first.keys().chain(second.keys()).any(unknown) {
            self.prepare_to_cut()?;
        }
        let rounds = [first, second].map(|round| self.sockets.destroy(&round));
        rounds.into_iter().collect::<Result<(), _>>().map_err(|(holder, source)| match holder {
            Holder::Pod(pod) => {
                KernelError::new(format!("cannot destroy sockets of pod {pod}"), source)
            }
            Holder::Proxy => KernelError::new("cannot destroy sockets of the proxy", source),
        })
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
        Ok(())
    }
}

type ConnectionMap = HashMap<MapData, ConnectionKey, Connection>;

fn read_all(
    map: &ConnectionMap,
    mut each: impl FnMut(&ConnectionKey, &Connection),
) -> Result<(), KernelError> {
    let descriptor = aya::maps::IterableMap::map(map).fd();
    match system::read_hash(descriptor, &mut each) {
        // Kernels before 5.6 read one at a time.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            for entry in map.iter() {
                match entry {
                    Ok((key, connection)) => each(&key, &connection),
                    Err(error) => {
                        return Err(KernelError::new(
                            "cannot read the map CONNECTIONS",
                            io::Error::other(error),
                        ));
                    }
                }
            }
            Ok(())
        }
        result => {
            result.map_err(|source| KernelError::new("cannot read the map CONNECTIONS", source))
        }
    }
}

/// The programs' clock (`bpf_ktime_get_ns`).
fn programs_now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The sockets of a connection that are on this node.
fn ends(one: &CutConnection) -> impl Iterator<Item = (Holder, SocketKey)> {
    let CutConnection { key, connection } = one;
    let flags = connection.flags;
    let low = SocketKey {
        local: key.low,
        remote: key.high,
        local_port: key.low_port,
        remote_port: key.high_port,
    };
    let client_low = flags & CONNECTION_CLIENT_LOW != 0;
    let (client, server) = if client_low { (low, low.reversed()) } else { (low.reversed(), low) };
    let client_holder = if flags & CONNECTION_FROM_PROXY != 0 {
        Some(Holder::Proxy)
    } else if flags & CONNECTION_ACCEPTED != 0 || connection.origin.pod == 0 {
        None
    } else {
        Some(Holder::Pod(connection.origin.pod))
    };
    let server_holder = if flags & CONNECTION_TO_PROXY != 0 {
        Some(Holder::Proxy)
    } else if connection.server != 0 {
        Some(Holder::Pod(connection.server))
    } else {
        None
    };
    client_holder
        .map(|holder| (holder, client))
        .into_iter()
        .chain(server_holder.map(|holder| (holder, server)))
}
