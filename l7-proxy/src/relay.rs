//! Bytes between a TCP connection and a stream of a tunnel, faithfully: half-close is
//! END_STREAM, reset is RST_STREAM, and a reader that stalls holds up the writer.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::reading::PodReader;

/// Why a connection ended otherwise than by both sides' closing it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection was reset: {0}")]
    Socket(io::Error),
    #[error("the stream was reset: {0}")]
    Stream(#[from] h2::Error),
    #[error("the other proxy refused it: {status} {reason}")]
    Refused { status: StatusCode, reason: String },
}

/// Carries both directions until both have ended. `receive` gives the stream's other half; what
/// the socket sends is carried before that.
pub(crate) async fn relay(
    socket: &mut TcpStream,
    mut send: SendStream<Bytes>,
    receive: impl Future<Output = Result<RecvStream, Broken>>,
) -> Result<(), Broken> {
    let result = carry(socket, &mut send, receive).await;
    if let Err(broken) = &result {
        if matches!(broken, Broken::Socket(_)) {
            // A reset drops what the stream has not sent yet: let the tunnel send it first, as
            // TCP would have.
            tokio::task::yield_now().await;
        }
        send.send_reset(Reason::CONNECT_ERROR);
    }
    result
}

async fn carry(
    socket: &mut TcpStream,
    send: &mut SendStream<Bytes>,
    receive: impl Future<Output = Result<RecvStream, Broken>>,
) -> Result<(), Broken> {
    let (mut reader, mut writer) = socket.split();
    let ends = Ends::default();
    let mut to_socket = pin!(to_socket(&mut writer, receive));
    let mut to_stream = pin!(to_stream(&mut reader, send, &ends));
    poll_fn(|cx| {
        if !ends.stream_ended.get() && !ends.socket_failed.get() {
            match to_socket.as_mut().poll(cx) {
                Poll::Ready(Ok(())) => ends.stream_ended.set(true),
                // What was received before the failure is still to be carried.
                Poll::Ready(Err(Broken::Socket(_))) => ends.socket_failed.set(true),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
                Poll::Pending => {}
            }
        }
        if let Poll::Ready(broken) = to_stream.as_mut().poll(cx) {
            return Poll::Ready(Err(broken));
        }
        if ends.socket_ended.get() && ends.stream_ended.get() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// Which directions have ended.
#[derive(Default)]
struct Ends {
    /// The socket's end of stream has been carried.
    socket_ended: Cell<bool>,
    /// The stream's end has been carried.
    stream_ended: Cell<bool>,
    /// Writing to the socket failed.
    socket_failed: Cell<bool>,
}

/// Carries what the socket receives, and its end; returns when the connection is broken.
async fn to_stream(reader: &mut ReadHalf<'_>, send: &mut SendStream<Bytes>, ends: &Ends) -> Broken {
    match try_to_stream(reader, send, ends).await {
        Ok(()) if ends.socket_failed.get() => Broken::Socket(io::ErrorKind::BrokenPipe.into()),
        Ok(()) => {
            if let Err(error) = send.send_data(Bytes::new(), true) {
                return error.into();
            }
            ends.socket_ended.set(true);
            failure(reader).await
        }
        Err(broken) => broken,
    }
}

/// Returns at the socket's end of stream.
async fn try_to_stream(
    reader: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    ends: &Ends,
) -> Result<(), Broken> {
    let pod = PodReader::new(reader.as_ref());
    loop {
        let mut data = poll_fn(|cx| {
            // While the stream's data are being read, they tell of a reset; afterwards nothing
            // else does.
            if ends.stream_ended.get()
                && let Poll::Ready(reset) = send.poll_reset(cx)
            {
                return Poll::Ready(Err(
                    reset.map_or_else(Broken::from, |r| Broken::Stream(r.into()))
                ));
            }
            pod.poll_read(reader.as_ref(), cx).map_err(Broken::Socket)
        })
        .await?;
        if data.is_empty() {
            return Ok(());
        }
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let mut capacity = send.capacity();
            if capacity == 0 {
                capacity = tokio::select! {
                    biased;
                    capacity = poll_fn(|cx| send.poll_capacity(cx)) => match capacity {
                        Some(capacity) => capacity?,
                        None => return Err(Broken::Stream(Reason::STREAM_CLOSED.into())),
                    },
                    broken = failure(reader) => return Err(broken),
                };
            }
            send.send_data(data.split_to(capacity.min(data.len())), false)?;
        }
    }
}

/// Ends when the socket is reset, also while nothing is read from or written to it.
async fn failure(reader: &ReadHalf<'_>) -> Broken {
    match reader.ready(Interest::ERROR).await {
        Ok(_) => Broken::Socket(io::ErrorKind::ConnectionReset.into()),
        Err(error) => Broken::Socket(error),
    }
}

/// Carries what the stream receives, and its end.
async fn to_socket(
    writer: &mut WriteHalf<'_>,
    receive: impl Future<Output = Result<RecvStream, Broken>>,
) -> Result<(), Broken> {
    let mut receive = receive.await?;
    let mut backlog = Backlog::default();
    let mut end: Option<Result<(), h2::Error>> = None;
    poll_fn(|cx| {
        loop {
            // Take all that has come, also while the socket takes no more: frames of a few bytes
            // are put together, so that the window bounds what they occupy.
            while end.is_none() {
                match receive.poll_data(cx) {
                    Poll::Ready(Some(Ok(data))) => backlog.push(data),
                    Poll::Ready(Some(Err(error))) => end = Some(Err(error)),
                    Poll::Ready(None) => end = Some(Ok(())),
                    Poll::Pending => break,
                }
            }
            if backlog.is_empty() {
                return match end.take() {
                    Some(result) => Poll::Ready(result.map_err(Broken::from)),
                    None => Poll::Pending,
                };
            }
            let written = ready!(backlog.poll_write(writer, cx)).map_err(Broken::Socket)?;
            // It fails where the stream has been reset, which poll_data tells.
            let _ = receive.flow_control().release_capacity(written);
        }
    })
    .await?;
    poll_fn(|cx| Pin::new(&mut *writer).poll_shutdown(cx)).await.map_err(Broken::Socket)
}

/// What has been received and not been written. What it may hold is bounded by the stream's
/// window, which is given back only as it is written.
#[derive(Default)]
struct Backlog {
    chunks: VecDeque<Bytes>,
    /// What comes after `chunks`, of frames too small to stand alone.
    tail: BytesMut,
}

/// Chunks below this are copied together.
const SMALL: usize = 2 << 10;
const SLICES: usize = 16;

impl Backlog {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if data.len() < SMALL && !self.is_empty() {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.chunks.push_back(data);
    }

    fn poll_write(
        &mut self,
        writer: &mut WriteHalf<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let written = match (self.chunks.front(), self.chunks.len()) {
            (Some(chunk), 1) if self.tail.is_empty() => {
                ready!(Pin::new(writer).poll_write(cx, chunk))?
            }
            _ => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let chunks = self.chunks.iter().map(|chunk| &chunk[..]).chain([&self.tail[..]]);
                for (slice, chunk) in slices.iter_mut().zip(chunks) {
                    *slice = IoSlice::new(chunk);
                }
                ready!(Pin::new(writer).poll_write_vectored(cx, &slices))?
            }
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                self.tail.advance(written.min(self.tail.len()));
                return;
            };
            if chunk.len() > written {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
    }
}
