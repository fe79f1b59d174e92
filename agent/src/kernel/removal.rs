//! Removing everything. Sockets that are accelerated hold the program `redirect`, and with it the
//! maps, until they leave the map of sockets: see `ebpf/src/leaving.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{Map, MapData, SockHash};
use weft_common::{Address, CONFIG_ACCELERATE, ConnectionKey, SocketKey};

use super::lagging::{self, ReaderWaker};
use super::pins::{self, Pins};
use super::programs::{self, SOCKETS};
use super::system::{self, Target};
use super::{Kernel, OpenError, Options, array, cgroups, map_error, object, offsets, open_map};

/// The program.
const PROGRAM: &str = "leave_sockets";
/// How long readers have for what was redirected to them.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at the sockets.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a removal has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Accelerated connections that hold the program `redirect` and its maps until they are
    /// closed: an end has not read in time what was redirected to it, which would be lost.
    pub held: BTreeSet<HeldConnection>,
    /// Why sockets could not be taken out of the map of sockets.
    pub trouble: Option<String>,
}

/// A connection, by its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldConnection {
    /// The lower end.
    pub low: SocketAddr,
    /// The higher end.
    pub high: SocketAddr,
}

impl fmt::Display for HeldConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} - {}", self.low, self.high)
    }
}

impl From<ConnectionKey> for HeldConnection {
    fn from(key: ConnectionKey) -> Self {
        let end = |address: Address, port| SocketAddr::new(address.into(), port);
        Self { low: end(key.low, key.low_port), high: end(key.high, key.high_port) }
    }
}

impl Kernel {
    /// Detaches and frees everything that is pinned under `pin_dir`. Connections that are
    /// accelerated go on over TCP: what was redirected is waited for, 5 s at most.
    ///
    /// # Errors
    /// If an agent is running with it, or a pin cannot be removed.
    pub fn remove(pin_dir: &Path) -> Result<Removed, OpenError> {
        if !pin_dir.exists() {
            return Ok(Removed::default());
        }
        let layout = object::layout(&object::kept_maps()?);
        let pins = Pins::open_as_it_is(pin_dir, &layout)?;
        let deadline = Instant::now() + READ_WITHIN;
        let mut sockets = None;
        let mut removed = Removed::default();
        // What another version has made is only unpinned.
        if pins.map(SOCKETS).exists() {
            match Sockets::leaving(&pins).and_then(|opened| sockets.insert(opened).drain(deadline))
            {
                Ok(held) => removed.held = held,
                Err(error) => removed.trouble = Some(error.to_string()),
            }
        }
        let detached = pins::detach_links(pins.directory());
        detached.map_err(|source| OpenError::Pin { path: pin_dir.to_owned(), source })?;
        // A connection that began before acceleration was turned off may have come last.
        if let Some(sockets) = &mut sockets {
            match sockets.drain(deadline) {
                Ok(held) => removed.held = held,
                Err(error) => removed.trouble = Some(error.to_string()),
            }
        }
        pins::remove_all(pin_dir)?;
        Ok(removed)
    }
}

/// The map of sockets, from which all are to go.
struct Sockets<'a> {
    pins: &'a Pins,
    map: SockHash<MapData, SocketKey>,
    pods_cgroup: u64,
    leaving: Option<Leaving>,
}

/// What is loaded where there is a socket.
struct Leaving {
    link: OwnedFd,
    /// At work until this is dropped.
    _waker: Option<ReaderWaker>,
    _ebpf: Ebpf,
}

impl<'a> Sockets<'a> {
    /// Turns acceleration off.
    fn leaving(pins: &'a Pins) -> Result<Self, OpenError> {
        let mut configuration = array(open_map(pins, "CONFIG")?)?;
        let mut config = configuration.get(&0, 0).map_err(map_error("CONFIG"))?;
        config.flags &= !CONFIG_ACCELERATE;
        configuration.set(0, config, 0).map_err(map_error("CONFIG"))?;
        let map = Map::from_map_data(open_map(pins, SOCKETS)?)
            .and_then(SockHash::try_from)
            .map_err(map_error(SOCKETS))?;
        Ok(Self { pins, map, pods_cgroup: config.root_cgroup, leaving: None })
    }

    /// Has sockets leave until there is none any more, or it is late. Returns whose have stayed.
    fn drain(&mut self, deadline: Instant) -> Result<BTreeSet<HeldConnection>, OpenError> {
        loop {
            let held = self.connections()?;
            if held.is_empty() {
                return Ok(held);
            }
            let leaving = match &mut self.leaving {
                Some(leaving) => leaving,
                none => none.insert(Leaving::load(self.pins, &self.map, self.pods_cgroup)?),
            };
            system::run_iterator(&leaving.link).map_err(OpenError::Leave)?;
            if Instant::now() > deadline {
                return self.connections();
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn connections(&self) -> Result<BTreeSet<HeldConnection>, OpenError> {
        self.map
            .keys()
            .map(|key| Ok(key.map_err(map_error(SOCKETS))?.connection().0.into()))
            .collect()
    }
}

impl Leaving {
    fn load(
        pins: &Pins,
        sockets: &SockHash<MapData, SocketKey>,
        pods_cgroup: u64,
    ) -> Result<Self, OpenError> {
        let kept = object::kept_maps()?.into_iter().map(|(name, (_, size))| (name, size)).collect();
        let offsets =
            offsets::of_this_kernel().map_err(|error| OpenError::Leave(io::Error::other(error)))?;
        let options = Options::new(pins.directory(), "");
        let mut ebpf = super::load_maps(&options, &kept, |name| pins.map(name), &offsets)?;
        let over = Target::Map(sockets.fd().as_fd());
        let link = programs::load_iterator(&mut ebpf, PROGRAM, "sockmap", over)
            .map_err(OpenError::Leave)?;
        // Without pods' cgroups there are no pods, without the iterator of TCP's sockets only what
        // the settings have insisted on.
        let waker = match (cgroups::find_by_id(pods_cgroup), lagging::load(&mut ebpf)) {
            (Ok(Some(pods)), Ok(iterator)) => {
                Some(ReaderWaker::start(iterator, &pods, |name| open_map(pins, name))?)
            }
            (pods, iterator) => {
                let iterator = iterator.err();
                tracing::warn!(?pods, ?iterator, "readers that lag behind cannot be woken");
                None
            }
        };
        Ok(Self { link, _waker: waker, _ebpf: ebpf })
    }
}
