use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `h2` writes and flushes frame by frame; each flush would be a TLS record and a system call.
/// This keeps what is written until the connection has done all that it can, when its driver
/// calls [`Coalesced::poll_send`]: the frames of all streams that are ready share records and
/// system calls.
pub(crate) struct Coalesced<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    io: S,
    buffer: Vec<u8>,
    /// How much of `buffer` has been sent.
    sent: usize,
}

/// Of the buffer: below glibc's threshold for mmap.
const CAPACITY: usize = 64 << 10;

impl<S> Coalesced<S> {
    pub(crate) fn new(io: S) -> Self {
        Self(Rc::new(RefCell::new(Inner { io, buffer: Vec::new(), sent: 0 })))
    }

    /// The same transport, for the driver.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    /// Sends what has been written.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(cx)
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(unsent) = self.buffer.get(self.sent..).filter(|unsent| !unsent.is_empty()) {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.buffer.clear();
        self.sent = 0;
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if inner.buffer.len() >= CAPACITY {
            ready!(inner.poll_send(cx))?;
        }
        let room = CAPACITY - inner.buffer.len();
        let taken = data.get(..room).unwrap_or(data);
        inner.buffer.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    /// Does nothing: sending is the driver's part.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
