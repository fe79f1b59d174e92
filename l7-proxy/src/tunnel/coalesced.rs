use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `h2` writes and flushes frame by frame; each flush would be a TLS record and a system call.
/// This keeps what is written until the connection has done all that it can, when its driver
/// calls [`Coalesced::poll_send`]: the frames of all streams that are ready share records and
/// system calls. What is large goes out at once, without being copied here, behind what waits.
pub(crate) struct Coalesced<S>(Rc<RefCell<Inner<S>>>);

struct Inner<S> {
    io: S,
    buffer: Vec<u8>,
    /// How much of `buffer` has been sent.
    sent: usize,
}

/// Of the buffer: below glibc's threshold for mmap.
const CAPACITY: usize = 64 << 10;
/// From this size on, data are not copied: a TLS record's worth, which gains nothing by company.
const LARGE: usize = 16 << 10;
/// A frame is a header and a payload.
const SLICES: usize = 4;

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

    /// Sends what waits, and data behind it; how much of the data is sent.
    fn poll_send_with(
        &mut self,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let unsent = self.buffer.get(self.sent..).unwrap_or_default();
            let waiting = unsent.len();
            let mut slices = [IoSlice::new(&[]); SLICES];
            let all = [unsent].into_iter().chain(data.iter().map(|slice| &slice[..]));
            for (slice, data) in slices.iter_mut().zip(all) {
                *slice = IoSlice::new(data);
            }
            let count = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if count > waiting {
                self.buffer.clear();
                self.sent = 0;
                return Poll::Ready(Ok(count - waiting));
            }
            self.sent += count;
        }
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
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        let size = data.iter().map(|slice| slice.len()).sum();
        if size >= LARGE {
            return inner.poll_send_with(cx, data);
        }
        if inner.buffer.len() + size > CAPACITY {
            ready!(inner.poll_send(cx))?;
        }
        for slice in data {
            inner.buffer.extend_from_slice(slice);
        }
        Poll::Ready(Ok(size))
    }

    fn is_write_vectored(&self) -> bool {
        true
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_and_large_writes_keep_their_order() -> io::Result<()> {
        // A pipe so narrow that every large write is taken in parts.
        let (near, mut far) = tokio::io::duplex(3000);
        let mut coalesced = Coalesced::new(near);
        let driver = coalesced.share();
        let sizes = [1, 9, LARGE, 5, LARGE - 1, LARGE - 1, CAPACITY, 3, 2 * CAPACITY, 0, 7];
        let data: Vec<u8> = (0..sizes.iter().sum()).map(|at: usize| (at % 251) as u8).collect();
        let write = async {
            let mut rest = data.as_slice();
            for size in sizes {
                let (mut piece, after) = rest.split_at(size);
                rest = after;
                while !piece.is_empty() {
                    let (head, payload) = piece.split_at(piece.len().min(9));
                    let slices = [IoSlice::new(head), IoSlice::new(payload)];
                    let count = coalesced.write_vectored(&slices).await?;
                    piece = piece.get(count..).unwrap_or_default();
                }
            }
            poll_fn(|cx| driver.poll_send(cx)).await?;
            coalesced.shutdown().await
        };
        let mut received = Vec::new();
        let (written, read) = tokio::join!(write, far.read_to_end(&mut received));
        written?;
        read?;
        assert!(received == data);
        Ok(())
    }
}
