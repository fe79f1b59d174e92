//! Unix sockets that only some users reach: by the socket's mode, and by the kernel's word for
//! who connected.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;

/// Who may connect, beside root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// A user.
    pub uid: Option<u32>,
}

impl Allowed {
    /// Whether a user may.
    pub fn admits(&self, uid: u32) -> bool {
        uid == 0 || self.uid == Some(uid)
    }
}

/// A socket in the file system, removed when dropped.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    allowed: Allowed,
}

impl Listener {
    /// Listens at `path`, in place of what an earlier agent left there.
    ///
    /// # Errors
    /// Where the file system refuses, or another agent answers there.
    pub async fn bind(path: &Path, allowed: Allowed) -> io::Result<Self> {
        if path.exists() {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another agent answers at {}", path.display()),
                ));
            }
            fs::remove_file(path)?;
        }
        // Made under another name, so that nobody connects before owner and mode are right.
        let early = path.with_extension("new");
        match fs::remove_file(&early) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&early)?;
        fs::set_permissions(&early, fs::Permissions::from_mode(0o600))?;
        if let Some(uid) = allowed.uid {
            chown(&early, Some(uid), None)?;
        }
        let inode = fs::symlink_metadata(&early)?.ino();
        fs::rename(&early, path)?;
        Ok(Self { listener, path: path.to_owned(), inode, allowed })
    }

    /// The connections of those who may.
    pub fn incoming(self) -> impl Stream<Item = io::Result<UnixStream>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    accepted = self.listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: others must go first.
                        tracing::error!(socket = %self.path.display(), %error, "accept");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                };
                if self.admits(&stream) && sender.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        let socket = self.path.display();
        match stream.peer_cred() {
            Ok(peer) if self.allowed.admits(peer.uid()) => {
                tracing::debug!(%socket, uid = peer.uid(), pid = ?peer.pid(), "connected");
                true
            }
            Ok(peer) => {
                tracing::warn!(
                    %socket, uid = peer.uid(), pid = ?peer.pid(), allowed = ?self.allowed.uid,
                    "refused a user who may not connect",
                );
                false
            }
            Err(error) => {
                tracing::warn!(%socket, %error, "refused a peer without credentials");
                false
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A newer agent may have put its own there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            drop(fs::remove_file(&self.path));
        }
    }
}
