//! Reading from TCP sockets.
//!
//! A read that is shorter than its buffer has emptied the socket, so no second one asks whether
//! there is more. Of a socket that the kernel has joined with its peer this is not quite true: a
//! read gives what was redirected, and not what TCP holds behind that, of which there may be no
//! further event (`ebpf/src/lagging.rs`). [`PodReader`] looks after such sockets.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::sockopt;

thread_local! {
    /// What is read is passed on by reference; the rest of the buffer serves the next read, of
    /// whichever connection. So idle connections hold no buffer.
    static BUFFER: RefCell<Buffer> = RefCell::default();
    static UNCERTAIN: RefCell<Vec<Rc<Reader>>> = RefCell::default();
}
/// Of a buffer, as long as reads do not fill it.
const SMALL: usize = 64 << 10;
/// The largest buffer: a stream in bulk takes fewer calls, and its sender gets fewer
/// acknowledgements.
const LARGE: usize = 256 << 10;
/// How long a pod's socket is not read before it is looked at.
const LOOK: Duration = Duration::from_millis(2);

#[derive(Default)]
struct Buffer {
    bytes: BytesMut,
    /// Whether the last read filled all the room that it had.
    filled: bool,
}

impl Buffer {
    /// Reads into what room there is, which is a quarter of the buffer at least.
    fn read(&mut self, socket: &TcpStream) -> io::Result<Bytes> {
        let size = if self.filled { LARGE } else { SMALL };
        if self.bytes.capacity() < size / 4 {
            self.bytes.reserve(size);
        }
        let room = self.bytes.capacity();
        let count = socket.try_read_buf(&mut self.bytes)?;
        self.filled = count == room;
        Ok(self.bytes.split().freeze())
    }
}

/// Reads what is there; nothing is the end of the stream.
pub(crate) fn poll_read(socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
    loop {
        ready!(socket.poll_read_ready(cx))?;
        let (read, filled) = BUFFER.with_borrow_mut(|buffer| (buffer.read(socket), buffer.filled));
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(data) if !data.is_empty() && !filled => {
                // Tells tokio what the next read would.
                let empty = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = socket.try_io(Interest::READABLE, empty);
                return Poll::Ready(Ok(data));
            }
            read => return Poll::Ready(read),
        }
    }
}

/// Reads a pod's socket. Where nothing has been read for a moment, the kernel is asked to tell
/// again of what there is: a call less for each message of a busy connection than reading until
/// the socket would block.
pub(crate) struct PodReader(Rc<Reader>);

struct Reader {
    socket: RawFd,
    open: Cell<bool>,
    /// Whether it is in `UNCERTAIN`.
    listed: Cell<bool>,
    /// Whether it has been read since it was last looked at.
    read: Cell<bool>,
}

impl PodReader {
    /// To be dropped before the socket is closed.
    pub(crate) fn new(socket: &TcpStream) -> Self {
        Self(Rc::new(Reader {
            socket: socket.as_raw_fd(),
            open: Cell::new(true),
            listed: Cell::new(false),
            read: Cell::new(false),
        }))
    }

    /// See [`poll_read`].
    pub(crate) fn poll_read(
        &self,
        socket: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let read = ready!(poll_read(socket, cx));
        self.0.read.set(true);
        if !self.0.listed.replace(true) {
            UNCERTAIN.with_borrow_mut(|readers| {
                if readers.is_empty() {
                    tokio::task::spawn_local(look());
                }
                readers.push(self.0.clone());
            });
        }
        Poll::Ready(read)
    }
}

impl Drop for PodReader {
    fn drop(&mut self) {
        self.0.open.set(false);
    }
}

/// Looks at uncertain readers until there is none.
async fn look() {
    loop {
        tokio::time::sleep(LOOK).await;
        let none = UNCERTAIN.with_borrow_mut(|readers| {
            readers.retain(|reader| {
                let busy = reader.open.get() && reader.read.replace(false);
                if !busy {
                    reader.listed.set(false);
                    if reader.open.get() {
                        sockopt::tell_if_readable(reader.socket);
                    }
                }
                busy
            });
            readers.is_empty()
        });
        if none {
            return;
        }
    }
}
