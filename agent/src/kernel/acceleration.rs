//! Whether sockets are accelerated here: decided by trying, not by the kernel's version.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aya::maps::SockMap;
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_attach_type::BPF_SK_MSG_VERDICT;
use weft_common::Offsets;

use super::object::{OBJECT, TRIAL_MAP};
use super::{offsets, system};

const TRIAL_PROGRAM: &str = "trial_redirect";
/// How much is sent to a reader that does not read.
const TRIAL_BYTES: usize = 64 << 10;

/// What the user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelerationMode {
    /// On where unread bytes can be bounded.
    #[default]
    Auto,
    /// Off.
    Off,
    /// On, even where unread bytes cannot be bounded.
    Unbounded,
}

/// Whether sockets are accelerated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelerationState {
    /// With the bound on unread bytes.
    On,
    /// Not at all.
    Off,
    /// Without the bound.
    Unbounded,
}

/// Whether sockets are accelerated, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceleration {
    /// Whether.
    pub state: AccelerationState,
    /// Why.
    pub reason: String,
}

impl Acceleration {
    /// What becomes of it where readers cannot be woken: off, unless the settings insist.
    pub(super) fn without_waking(self, lacks: &str) -> Self {
        match self.state {
            AccelerationState::On => Self {
                state: AccelerationState::Off,
                reason: format!(
                    "readers that take a short read to mean that there is no more could sleep on \
                     bytes that are there: {lacks}"
                ),
            },
            AccelerationState::Unbounded => {
                Self { reason: format!("{}; {lacks}", self.reason), ..self }
            }
            AccelerationState::Off => self,
        }
    }
}

/// Decides, and says where the kernel keeps what the programs look at (all zero where
/// acceleration is off).
pub(super) fn decide(mode: AccelerationMode) -> (Acceleration, Offsets) {
    let off = |reason: String| {
        (Acceleration { state: AccelerationState::Off, reason }, Offsets::default())
    };
    if mode == AccelerationMode::Off {
        return off("turned off by the settings".to_owned());
    }
    // Neither changes while the kernel runs.
    static OFFSETS: OnceLock<Result<Offsets, String>> = OnceLock::new();
    static CHARGED: OnceLock<Result<bool, String>> = OnceLock::new();
    let offsets =
        OFFSETS.get_or_init(|| offsets::of_this_kernel().map_err(|error| error.to_string()));
    let offsets = match offsets {
        Ok(offsets) => *offsets,
        Err(error) => return off(error.clone()),
    };
    let charged =
        CHARGED.get_or_init(|| redirected_bytes_are_charged().map_err(|error| error.to_string()));
    let (state, reason) = match charged {
        Ok(true) => (
            AccelerationState::On,
            "the kernel charges redirected bytes to their reader, so they can be bounded"
                .to_owned(),
        ),
        Ok(false) if mode == AccelerationMode::Unbounded => (
            AccelerationState::Unbounded,
            "the kernel does not charge redirected bytes to their reader, and the settings insist"
                .to_owned(),
        ),
        Ok(false) => {
            return off("the kernel does not charge redirected bytes to their reader (Linux 6.13 \
                        does), so a reader that lags behind could not be protected"
                .to_owned());
        }
        Err(error) => return off(format!("the trial of it failed: {error}")),
    };
    (Acceleration { state, reason }, offsets)
}

/// Joins two sockets, sends to the one that does not read, and looks whether what it has not read
/// is charged to it.
fn redirected_bytes_are_charged() -> io::Result<bool> {
    let mut ebpf = load()?;
    let (writer, reader) = pair()?;
    let map = ebpf.take_map(TRIAL_MAP).ok_or_else(|| missing("map", TRIAL_MAP))?;
    let mut map = SockMap::try_from(map).map_err(io::Error::other)?;
    map.set(0, &writer, 0).map_err(io::Error::other)?;
    map.set(1, &reader, 0).map_err(io::Error::other)?;
    let before = system::receive_memory(&reader)?;
    writer.set_nonblocking(true)?;
    let mut sent = 0;
    let chunk = [0u8; 4096];
    while sent < TRIAL_BYTES {
        match (&writer).write(&chunk) {
            Ok(length) => sent += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    // Redirected bytes are in the reader's queue when the write returns; later kernels may hand
    // them over a moment later.
    let deadline = Instant::now() + Duration::from_millis(20);
    loop {
        let charged = system::receive_memory(&reader)?.saturating_sub(before) as usize;
        if charged >= sent / 2 {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::yield_now();
    }
}

/// The object once more, with maps of its own, and only the trial's program in the kernel.
fn load() -> io::Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let names: Vec<String> = super::object::kept_maps()
        .map_err(io::Error::other)?
        .into_keys()
        .filter(|name| !name.starts_with("SOCKET_"))
        .collect();
    for name in &names {
        // None of them is used: the least that the kernel accepts.
        loader.map_max_entries(name, if name == "FLOWS" { 4096 } else { 1 });
    }
    let mut ebpf = loader.load(OBJECT).map_err(io::Error::other)?;
    let map = ebpf
        .map(TRIAL_MAP)
        .and_then(|map| SockMap::try_from(map).ok())
        .ok_or_else(|| missing("map", TRIAL_MAP))?
        .fd()
        .try_clone()?;
    let program = ebpf.program_mut(TRIAL_PROGRAM);
    let Some(Program::SkMsg(program)) = program else {
        return Err(missing("program", TRIAL_PROGRAM));
    };
    program.load().map_err(io::Error::other)?;
    system::attach_to_map(program.fd().map_err(io::Error::other)?, &map, BPF_SK_MSG_VERDICT)?;
    Ok(ebpf)
}

/// Both ends of a TCP connection on the loopback interface.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let writer = TcpStream::connect(listener.local_addr()?)?;
    loop {
        let (reader, peer) = listener.accept()?;
        // Somebody else may have connected first.
        if peer == writer.local_addr()? {
            return Ok((writer, reader));
        }
    }
}

fn missing(what: &str, name: &str) -> io::Error {
    io::Error::other(format!("the embedded eBPF object has no {what} {name}"))
}
