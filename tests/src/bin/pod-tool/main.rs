//! What the processes of pods do in tests: servers, clients, and hostile ones. Every line of
//! output is a JSON object.

mod bytes;
mod connect;
mod dial;
mod exchange;
mod forge;
mod hold;
mod pause;
mod peculiar;
mod ping;
mod probe;
mod report;
mod serve;
mod system;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use clap::Parser;

/// A process in a pod.
#[derive(Debug, Parser)]
enum Role {
    /// Serves TCP and UDP, and reports who connects.
    Serve(serve::Options),
    /// Connects, and reports the peer or the error.
    Connect(connect::Options),
    /// Tries to connect again and again, and reports whenever the outcome changes.
    Watch(dial::WatchOptions),
    /// Connects many times, and reports how long `connect()` takes.
    Dial(dial::DialOptions),
    /// Sends a datagram, and reports the answer.
    Datagram(connect::DatagramOptions),
    /// Sends numbered words, for `serve --mode words` to check.
    Words {
        /// Where to.
        to: SocketAddr,
        /// How much, in KiB.
        #[arg(long, default_value_t = 16384)]
        kib: u64,
    },
    /// Sends numbered words to `serve --mode trade` and checks those that come back, until its
    /// standard input ends.
    Trade {
        /// Where to.
        to: SocketAddr,
    },
    /// Writes until nothing more is taken, and reports how much was.
    Fill {
        /// Where to.
        to: SocketAddr,
        /// Gives up after this many MiB.
        #[arg(long, default_value_t = 256)]
        mib: u64,
    },
    /// Sends and receives without pause on one connection, and reports how that ended.
    Probe(probe::Options),
    /// Opens connections of random sizes that end in random ways, and compares every byte.
    Exchange(exchange::Options),
    /// Opens many connections, and holds them.
    Hold(hold::Options),
    /// Uses a socket in an uncommon way against an echo server.
    Peculiar {
        /// Which.
        way: peculiar::Way,
        /// The echo server.
        to: SocketAddr,
    },
    /// Sends a packet with a source address of one's choice.
    Forge {
        /// How it is sent.
        way: forge::Way,
        /// The source that it claims.
        #[arg(long)]
        source: SocketAddrV4,
        /// Its destination.
        #[arg(long)]
        to: SocketAddrV4,
        /// UDP with this payload in place of a TCP SYN.
        #[arg(long)]
        udp: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// Holds a pod's namespaces until it is told to end.
    Pause,
    /// Asks for an ICMP echo.
    Ping {
        /// Whom.
        to: IpAddr,
        /// How long to wait.
        #[arg(long, default_value_t = 1000)]
        milliseconds: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Serve(options) => serve::serve(&options),
        Role::Connect(options) => connect::connect(&options),
        Role::Watch(options) => dial::watch(&options),
        Role::Dial(options) => dial::dial(&options),
        Role::Datagram(options) => connect::datagram(&options),
        Role::Words { to, kib } => bytes::send_words(to, kib << 10),
        Role::Trade { to } => bytes::trade(to),
        Role::Fill { to, mib } => bytes::fill(to, mib << 20),
        Role::Probe(options) => probe::probe(&options),
        Role::Exchange(options) => exchange::exchange(&options),
        Role::Hold(options) => hold::hold(&options),
        Role::Peculiar { way, to } => peculiar::run(way, to),
        Role::Forge { way, source, to, udp, count } => {
            forge::forge(way, source, to, udp.as_deref(), count)
        }
        Role::Pause => pause::pause(),
        Role::Ping { to, milliseconds } => ping::ping(to, milliseconds),
    }
}
