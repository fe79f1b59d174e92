//! Tunnels: HTTP/2 in mTLS, each for one pair of identities, carrying many connections.

mod coalesced;
mod pool;
mod socket;
mod window;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use h2::{Ping, PingPong};

pub(crate) use coalesced::Coalesced;
pub(crate) use pool::{Pool, TunnelError, TunnelKey};
pub(crate) use socket::TunnelSocket;
pub(crate) use window::StreamWindow;

use crate::bounds::Limits;

/// Never the bound: streams whose readers stall must not hold up the tunnel's other streams.
pub(crate) const TUNNEL_WINDOW: u32 = 1 << 30;
pub(crate) const FRAME: u32 = 64 << 10;
/// What a stream may have waiting to be sent.
pub(crate) const SEND_BUFFER: usize = 256 << 10;
/// Above a frame and what is sent with it: without a record for the odd bytes at its end.
pub(crate) const TLS_BUFFER: usize = 256 << 10;
pub(crate) const HEADER_LIST: u32 = 16 << 10;
/// Streams that were reset a moment ago, whose late frames are expected. Above the number of
/// streams: a pod that resets connections quickly is no reason to close the tunnel of all.
pub(crate) const RESET_STREAMS: usize = 16 << 10;

/// Lets a connection of `h2` do what it can, and then sends what it has written, together.
pub(crate) fn poll_driven<S, T>(
    cx: &mut Context<'_>,
    io: &Coalesced<S>,
    poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    failed: impl FnOnce(io::Error) -> T,
) -> Poll<T>
where
    S: tokio::io::AsyncWrite + Unpin,
{
    let polled = poll(cx);
    match io.poll_send(cx) {
        Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(failed(error)),
        _ => polled,
    }
}

/// Ends when the peer no longer answers pings.
pub(crate) async fn unanswered(pings: Option<PingPong>, limits: &Limits) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits.ping_interval).await;
        match tokio::time::timeout(limits.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Ends at a time of the clock.
pub(crate) fn at(time: SystemTime) -> Pin<Box<dyn Future<Output = ()>>> {
    let left = time.duration_since(SystemTime::now()).unwrap_or_default();
    Box::pin(tokio::time::sleep(left))
}

/// The client's side of a tunnel's transport.
pub(crate) type ClientTls = tokio_rustls::client::TlsStream<TunnelSocket>;
/// The server's side of a tunnel's transport.
pub(crate) type ServerTls = tokio_rustls::server::TlsStream<TunnelSocket>;
