//! Many connections of random sizes and orders of close, compared byte by byte.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::support::*;

const CONNECTIONS: u64 = 1000;
/// Enough for tunnels to change their windows.
const AT_ONCE: usize = 200;

/// Marsaglia's xorshift64: the same numbers on every run.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// The client ends its direction; the server answers only then.
    ClientFirst,
    /// The server ends its direction; the client goes on sending.
    ServerFirst,
    /// Both send and end at once.
    Together,
    /// The client resets after it has sent.
    ClientResets,
    /// The server resets after it has sent.
    ServerResets,
}

/// What both ends of a connection do; its number says it all.
struct Scenario {
    order: Order,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    random: Random,
}

impl Scenario {
    fn new(number: u64) -> Self {
        let mut random = Random::new(number);
        let order = match random.below(5) {
            0 => Order::ClientFirst,
            1 => Order::ServerFirst,
            2 => Order::Together,
            3 => Order::ClientResets,
            _ => Order::ServerResets,
        };
        let mut length = || match random.below(8) {
            0 => 0,
            1..=4 => random.below(2_000) as usize,
            5 | 6 => random.below(100_000) as usize,
            _ => random.below(2_000_000) as usize,
        };
        let (to_server, to_client) = (length(), length());
        let (to_server, to_client) = (random.bytes(to_server), random.bytes(to_client));
        Self { order, to_server, to_client, random }
    }
}

/// Writes in pieces of random sizes.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    mut random: Random,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = (random.below(70_000) as usize + 1).min(bytes.len());
        writer.write_all(&bytes[..count]).await?;
        bytes = &bytes[count..];
    }
    Ok(())
}

async fn read(reader: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, io::Result<usize>) {
    let mut bytes = Vec::new();
    let result = reader.read_to_end(&mut bytes).await;
    (bytes, result)
}

fn same(what: &str, received: &(Vec<u8>, io::Result<usize>), sent: &[u8]) {
    assert!(received.1.is_ok(), "{what}: {:?} after {} bytes", received.1, received.0.len());
    assert!(received.0 == sent, "{what}: {} of {} bytes", received.0.len(), sent.len());
}

/// A reset may take bytes with it, but never looks like an end.
fn cut(what: &str, received: &(Vec<u8>, io::Result<usize>), sent: &[u8]) {
    let error = received.1.as_ref().expect_err(what);
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{what}: {error}");
    assert!(sent.starts_with(&received.0), "{what}: other bytes than were sent");
}

fn reset(socket: TcpStream) {
    socket2::SockRef::from(&socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
}

async fn serve(mut socket: TcpStream) {
    let mut number = [0; 8];
    if socket.read_exact(&mut number).await.is_err() {
        // The client's reset has overtaken everything.
        return;
    }
    let number = u64::from_le_bytes(number);
    let Scenario { order, to_server, to_client, random } = Scenario::new(number);
    let what = format!("server of {number}, {order:?}");
    match order {
        Order::ClientFirst => {
            same(&what, &read(&mut socket).await, &to_server);
            write(&mut socket, &to_client, random).await.unwrap();
        }
        Order::ServerFirst => {
            write(&mut socket, &to_client, random).await.unwrap();
            socket.shutdown().await.unwrap();
            same(&what, &read(&mut socket).await, &to_server);
        }
        Order::Together => {
            let (mut reader, mut writer) = socket.split();
            let send = async {
                write(&mut writer, &to_client, random).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (received, ()) = tokio::join!(read(&mut reader), send);
            same(&what, &received, &to_server);
        }
        Order::ClientResets => cut(&what, &read(&mut socket).await, &to_server),
        Order::ServerResets => {
            write(&mut socket, &to_client, random).await.unwrap();
            reset(socket);
        }
    }
}

async fn dial(mesh: &Mesh, number: u64) {
    let Scenario { order, to_server, to_client, random } = Scenario::new(number);
    let what = format!("client of {number}, {order:?}");
    let mut socket = mesh.connect(8080).await.unwrap();
    socket.write_all(&number.to_le_bytes()).await.unwrap();
    match order {
        Order::ClientFirst => {
            write(&mut socket, &to_server, random).await.unwrap();
            socket.shutdown().await.unwrap();
            same(&what, &read(&mut socket).await, &to_client);
        }
        Order::ServerFirst => {
            same(&what, &read(&mut socket).await, &to_client);
            write(&mut socket, &to_server, random).await.unwrap();
        }
        Order::Together => {
            let (mut reader, mut writer) = socket.split();
            let send = async {
                write(&mut writer, &to_server, random).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (received, ()) = tokio::join!(read(&mut reader), send);
            same(&what, &received, &to_client);
        }
        Order::ClientResets => {
            write(&mut socket, &to_server, random).await.unwrap();
            reset(socket);
        }
        Order::ServerResets => cut(&what, &read(&mut socket).await, &to_client),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_are_carried_faithfully() {
    let mesh = Arc::new(Mesh::new().await);
    let listener = TcpListener::bind((mesh.server, 8080)).await.unwrap();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let servers = tokio::spawn(async move {
        let mut servers = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    servers.spawn(serve(accepted.unwrap().0));
                }
                _ = &mut stopped => break,
            }
        }
        // Every server sees how its connection ended.
        let mut ended = 0;
        while let Some(served) = servers.join_next().await {
            served.unwrap();
            ended += 1;
        }
        ended
    });
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CONNECTIONS {
        let place = places.clone().acquire_owned().await.unwrap();
        let mesh = mesh.clone();
        clients.spawn(async move {
            dial(&mesh, number).await;
            drop(place);
        });
    }
    while let Some(dialled) = clients.join_next().await {
        dialled.unwrap();
    }
    stop.send(()).unwrap();
    let ended = tokio::time::timeout(PATIENCE, servers)
        .await
        .expect("every server's connection has ended")
        .unwrap();
    // A client's reset may have come before there was a connection to its server.
    let certain = (0..CONNECTIONS).map(Scenario::new).filter(|s| s.order != Order::ClientResets);
    assert!(ended >= certain.count(), "{ended} connections have ended");
}
