use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify;
use rustix::io::{Errno, write};
use tokio::sync::mpsc;

use super::{CgroupError, CgroupId, Directory, PodCgroup, directories, find_pods};

/// The cgroup of a pod came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupEvent {
    /// It is there.
    Added(PodCgroup),
    /// It is gone. One that is made anew under the same name is removed and added.
    Removed(PodCgroup),
}

/// Watches the pods' root for cgroups of pods, from a thread of its own, so that a new pod is
/// known a moment after the kubelet has made its cgroup and before it runs anything. The thread
/// ends when this is dropped.
#[derive(Debug)]
pub struct CgroupWatch {
    events: mpsc::UnboundedReceiver<CgroupEvent>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl CgroupWatch {
    /// Starts to watch `root`. The first events are the pods that are there already.
    ///
    /// # Errors
    /// If the root cannot be watched or read.
    pub fn start(root: &Path) -> Result<Self, CgroupError> {
        let at_root = |source: io::Error| CgroupError::Read { path: root.to_owned(), source };
        let (sender, events) = mpsc::unbounded_channel();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| at_root(error.into()))?;
        let stopped = stop.try_clone().map_err(at_root)?;
        let mut watcher = Watcher::new(root, sender).map_err(at_root)?;
        watcher.rescan().map_err(at_root)?;
        let thread = std::thread::Builder::new()
            .name("cgroup-watch".to_owned())
            .spawn(move || watcher.run(&stopped))
            .map_err(at_root)?;
        Ok(Self { events, stop, thread: Some(thread) })
    }

    /// The next event; `None` when the watch has ended, which the log says why.
    pub async fn next(&mut self) -> Option<CgroupEvent> {
        self.events.recv().await
    }

    /// The next event if there is one already.
    pub fn try_next(&mut self) -> Option<CgroupEvent> {
        self.events.try_recv().ok()
    }
}

impl Drop for CgroupWatch {
    fn drop(&mut self) {
        // Only a full counter could refuse, and it is at 0.
        let _unused = write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _unused = thread.join();
        }
    }
}

struct Watcher {
    root: PathBuf,
    inotify: OwnedFd,
    known: BTreeMap<CgroupId, PodCgroup>,
    events: mpsc::UnboundedSender<CgroupEvent>,
}

impl Watcher {
    fn new(root: &Path, events: mpsc::UnboundedSender<CgroupEvent>) -> io::Result<Self> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        watch(&inotify, root)?;
        Ok(Self { root: root.to_owned(), inotify, known: BTreeMap::new(), events })
    }

    fn run(mut self, stop: &OwnedFd) {
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "the watch of the pods' cgroups has ended");
                    return;
                }
            }
            let [_, stopped] = ready;
            if !stopped.revents().is_empty() || self.events.is_closed() {
                return;
            }
            // What an event says may be past already: what is there now is what counts. A scan of
            // some hundred directories takes well under a millisecond.
            self.drain();
            if let Err(error) = self.rescan() {
                if error.kind() == io::ErrorKind::NotFound {
                    tracing::info!(root = %self.root.display(), "the pods' root cgroup is gone");
                } else {
                    tracing::error!(
                        root = %self.root.display(), %error,
                        "cannot read the pods' root cgroup: its watch has ended"
                    );
                }
                return;
            }
        }
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while reader.next().is_ok() {}
    }

    /// Compares what is there with what is known.
    fn rescan(&mut self) -> io::Result<()> {
        self.watch_classes()?;
        let found: BTreeMap<CgroupId, PodCgroup> =
            find_pods(&self.root)?.into_iter().map(|pod| (pod.id, pod)).collect();
        for pod in self.known.values().filter(|pod| !found.contains_key(&pod.id)) {
            let _unused = self.events.send(CgroupEvent::Removed(pod.clone()));
        }
        for pod in found.values().filter(|pod| !self.known.contains_key(&pod.id)) {
            let _unused = self.events.send(CgroupEvent::Added(pod.clone()));
        }
        self.known = found;
        Ok(())
    }

    /// Watches the directories of QoS classes, before they are read, so that nothing is missed.
    /// One that is watched already stays watched, and one that was made anew is another: the
    /// kernel does not tell that a watched cgroup is gone.
    fn watch_classes(&self) -> io::Result<()> {
        for (name, path) in directories(&self.root)? {
            if Directory::of(&name) == Directory::QosClass {
                match watch(&self.inotify, &path) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn watch(inotify: &OwnedFd, path: &Path) -> Result<(), Errno> {
    inotify::add_watch(
        inotify,
        path,
        inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::ONLYDIR,
    )
    .map(drop)
}
