use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

const BACKLOG: i32 = 4096;
/// A peer that vanished is noticed after 60 s + 6 * 10 s.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// Listens beside the other threads' listeners. Accepted sockets inherit its options.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket with the options of a pod's connection or a tunnel, from an address if one is given.
pub(crate) fn socket(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    SockRef::from(&socket).set_tcp_keepalive(&KEEPALIVE)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    Ok(socket)
}

/// Lets a pod's connection, or those that a listener accepts, end by RST however they end, be it
/// with the process: nobody is to take what has come until then for all. See [`close`].
pub(crate) fn reset_at_end<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    socket.into().set_linger(Some(Duration::ZERO))
}

/// Closes a pod's connection of which both directions have ended.
pub(crate) fn close(socket: TcpStream) {
    // A socket of which not even this can be set is closed already.
    let _ = SockRef::from(&socket).set_linger(None);
}

/// Takes connections until the worker closes, and then those that the kernel has accepted before:
/// they would be reset. What is wrong with a single connection is not the listener's; where files or
/// memory are short it waits, so that others may end.
pub(crate) async fn accept(
    listener: &TcpListener,
    closing: &mut watch::Receiver<bool>,
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return None,
        };
        match accepted {
            Ok((socket, peer)) => {
                return Some((socket, SocketAddr::new(peer.ip().to_canonical(), peer.port())));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
