//! Wakes readers that would sleep on bytes that are there: see `ebpf/src/lagging.rs`.
//!
//! The programs write such a reader into the map `LAGGING`, and tell of it in `LAGGING_NEWS`. A
//! thread of its own looks there, and has the program `wake_readers` look at the sockets of the
//! reader's network namespace until the reader has read on. Most have when they are looked at the
//! second time, so that is when the first of them are woken: looking at all sockets of a kernel
//! takes a millisecond. Readers that an earlier agent has left, or of which there was no room to
//! tell, are found when all of `LAGGING` is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, Queue};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weft_common::{Connection, ConnectionKey, Lagging, PodId};

use super::cgroups::{self, CgroupId};
use super::system::{self, Target};
use super::{OpenError, map_error, namespace, programs};

/// The program.
const PROGRAM: &str = "wake_readers";
/// Between two looks at the map, and at the readers of a namespace that have just been found.
const SHORTEST: Duration = Duration::from_millis(10);
/// Between two looks at readers that do not read on.
const LONGEST: Duration = Duration::from_millis(160);
/// Looking takes at most this part of the time.
const PART: u32 = 20;
/// Between two readings of all of `LAGGING`: it has as many buckets as there may be connections.
const ALL: Duration = Duration::from_secs(1);
/// How many entries `LAGGING_NEWS` has.
const NEWS: usize = 4096;

/// Loads the program, and tries it on the sockets of the agent's own namespace. The error says
/// what this kernel lacks.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<WakeProgram, String> {
    let mut load = || -> io::Result<WakeProgram> {
        let link = programs::load_iterator(ebpf, PROGRAM, "tcp", Target::Nothing)?;
        let iterator = WakeProgram { link };
        iterator.run()?;
        Ok(iterator)
    };
    load().map_err(|error| {
        format!("the eBPF program {PROGRAM} cannot be run: {error} (Linux 5.15 has what it needs)")
    })
}

/// The program, ready to run.
#[derive(Debug)]
pub(super) struct WakeProgram {
    link: OwnedFd,
}

impl WakeProgram {
    /// Runs it once for every TCP socket in the network namespace of the calling thread.
    fn run(&self) -> io::Result<()> {
        system::run_iterator(&self.link)
    }
}

/// The thread that wakes readers. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct ReaderWaker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReaderWaker {
    /// Starts it, with the maps that `map` opens by their names.
    pub(super) fn start(
        iterator: WakeProgram,
        pods_cgroup: &Path,
        map: impl Fn(&'static str) -> Result<MapData, OpenError>,
    ) -> Result<Self, OpenError> {
        let mut readers = Readers {
            iterator: Arc::new(iterator),
            lagging: hash("LAGGING", &map)?,
            news: Map::from_map_data(map("LAGGING_NEWS")?)
                .and_then(Queue::try_from)
                .map_err(map_error("LAGGING_NEWS"))?,
            known: BTreeSet::new(),
            read_all: Instant::now(),
            connections: hash("CONNECTIONS", &map)?,
            cgroups: hash("CGROUPS", &map)?,
            pods_cgroup: pods_cgroup.to_owned(),
            holders: BTreeMap::new(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("weft-readers".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    thread::park_timeout(readers.look());
                }
            })
            .map_err(OpenError::Thread)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ReaderWaker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _panicked = thread.join();
        }
    }
}

fn hash<K: aya::Pod, V: aya::Pod>(
    name: &'static str,
    map: impl Fn(&'static str) -> Result<MapData, OpenError>,
) -> Result<HashMap<MapData, K, V>, OpenError> {
    Map::from_map_data(map(name)?).and_then(HashMap::try_from).map_err(map_error(name))
}

/// The readers of all namespaces.
struct Readers {
    iterator: Arc<WakeProgram>,
    lagging: HashMap<MapData, u64, Lagging>,
    news: Queue<MapData, u64>,
    /// Those of which is known that they lagged.
    known: BTreeSet<u64>,
    /// When all of `LAGGING` is to be read.
    read_all: Instant,
    connections: HashMap<MapData, ConnectionKey, Connection>,
    cgroups: HashMap<MapData, CgroupId, PodId>,
    pods_cgroup: PathBuf,
    /// Those that have lagging readers; 0 is the node's.
    holders: BTreeMap<PodId, Holder>,
}

/// A network namespace with lagging readers.
struct Holder {
    namespace: OwnedFd,
    /// The readers, by their sockets, and since when they lag.
    readers: BTreeMap<u64, u32>,
    interval: Duration,
    next: Instant,
    /// Held while its sockets are looked at. Whoever can hold up the kernel with a socket's lock
    /// holds up nobody but its own pod.
    busy: Arc<Mutex<()>>,
}

impl Readers {
    /// Looks once; returns when to look again.
    fn look(&mut self) -> Duration {
        let started = Instant::now();
        // As much as the queue holds: programs may add to it as fast as it is read.
        self.known.extend((0..NEWS).map_while(|_| self.news.pop(0).ok()));
        if self.read_all <= started {
            self.read_all = started + ALL;
            let descriptor = aya::maps::IterableMap::map(&self.lagging).fd();
            let known = &mut self.known;
            let read = system::read_hash(descriptor, |reader: &u64, _: &Lagging| {
                known.insert(*reader);
            });
            if let Err(error) = read {
                tracing::warn!(%error, "lagging readers cannot be read from the map LAGGING");
            }
        }
        let mut found: BTreeMap<PodId, BTreeMap<u64, Lagging>> = BTreeMap::new();
        self.known.retain(|reader| match self.lagging.get(reader, 0) {
            Ok(lagging) => {
                found.entry(lagging.pod).or_default().insert(*reader, lagging);
                true
            }
            Err(_) => false,
        });
        self.holders.retain(|pod, _| found.contains_key(pod));
        for (pod, readers) in found {
            if let Err(error) = self.serve(pod, &readers) {
                // A pod that has just gone has no process; its sockets are soon closed.
                tracing::debug!(pod, %error, "lagging readers cannot be woken");
            }
        }
        SHORTEST.max(started.elapsed() * PART)
    }

    fn serve(&mut self, pod: PodId, readers: &BTreeMap<u64, Lagging>) -> io::Result<()> {
        let now = Instant::now();
        if !self.holders.contains_key(&pod) {
            let Some(namespace) = self.namespace_of(pod)? else {
                self.forget_closed(readers);
                return Ok(());
            };
            let holder = Holder {
                namespace,
                readers: BTreeMap::new(),
                interval: SHORTEST,
                next: now,
                busy: Arc::default(),
            };
            self.holders.insert(pod, holder);
        }
        let Some(holder) = self.holders.get_mut(&pod) else { return Ok(()) };
        let lagging: BTreeMap<u64, u32> =
            readers.iter().map(|(reader, lagging)| (*reader, lagging.since)).collect();
        let still = holder.readers.iter().any(|(reader, since)| lagging.get(reader) == Some(since));
        if holder.readers != lagging {
            holder.readers = lagging;
            holder.interval = SHORTEST;
            holder.next = holder.next.min(now + SHORTEST);
        }
        if !still || holder.next > now {
            return Ok(());
        }
        holder.next = now + holder.interval;
        holder.interval = (holder.interval * 2).min(LONGEST);
        let slow = holder.interval == LONGEST;
        holder.wake(&self.iterator)?;
        if slow {
            self.forget_closed(readers);
        }
        Ok(())
    }

    /// The namespace of a pod that has a process, or the node's.
    fn namespace_of(&self, pod: PodId) -> io::Result<Option<OwnedFd>> {
        if pod == 0 {
            return namespace::of_process(std::process::id()).map(Some);
        }
        for cgroup in cgroups::find_pods(&self.pods_cgroup)? {
            if self.cgroups.get(&cgroup.id, 0).is_ok_and(|bound| bound == pod)
                && let Some(process) = cgroups::find_process(&cgroup.path)?
            {
                return namespace::of_process(process).map(Some);
            }
        }
        Ok(None)
    }

    /// The programs forget a reader when it closes. What they have missed is forgotten here.
    fn forget_closed(&mut self, readers: &BTreeMap<u64, Lagging>) {
        for (reader, lagging) in readers {
            let open = self.connections.get(&lagging.key, 0).is_ok_and(|connection| {
                let low = lagging.low != 0;
                *reader == if low { connection.low_sock } else { connection.high_sock }
            });
            if !open {
                let _gone = self.lagging.remove(reader);
            }
        }
    }
}

impl Holder {
    /// Looks at the sockets in a thread of its own, unless the last is still at it.
    fn wake(&self, iterator: &Arc<WakeProgram>) -> io::Result<()> {
        if self.busy.try_lock().is_err() {
            return Ok(());
        }
        let (iterator, busy) = (iterator.clone(), self.busy.clone());
        let namespace = self.namespace.try_clone()?;
        thread::Builder::new().name("weft-readers".to_owned()).spawn(move || {
            let _busy = busy.lock().unwrap_or_else(PoisonError::into_inner);
            let network = Some(LinkNameSpaceType::Network);
            let woken = move_into_link_name_space(namespace.as_fd(), network)
                .map_err(io::Error::from)
                .and_then(|()| iterator.run());
            if let Err(error) = woken {
                tracing::warn!(%error, "lagging readers cannot be woken");
            }
        })?;
        Ok(())
    }
}
