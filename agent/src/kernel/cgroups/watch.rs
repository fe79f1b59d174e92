use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;
use rustix::io::{Errno, write};
use tokio::sync::mpsc;

use super::{CgroupError, CgroupId, Directory, PodCgroup, directories, find_pods, id_of};

/// The cgroup of a pod came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupEvent {
    /// It is there.
    Added(PodCgroup),
    /// It is gone. One that is made anew under the same name is removed and added.
    Removed(PodCgroup),
    /// The pods' root is not watched any more, and why. It is tried again.
    Lost(String),
    /// The pods' root is watched again; it may be another, made anew under its path. What there is
    /// now comes next.
    Found,
}

/// Between tries to watch the pods' root again, from the first to the later ones. Short, for what
/// runs below a root that was made anew is not restricted until then.
const RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(100);

/// Watches the pods' root for cgroups of pods, from a thread of its own, so that a new pod is
/// known a moment after the kubelet has made its cgroup and before it runs anything. Where the root
/// goes, or cannot be read, it is tried again until it can. The thread ends when this is dropped.
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
        watcher.scan().map_err(at_root)?;
        let thread = std::thread::Builder::new()
            .name("cgroup-watch".to_owned())
            .spawn(move || watcher.run(&stopped))
            .map_err(at_root)?;
        Ok(Self { events, stop, thread: Some(thread) })
    }

    /// The next event.
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
    watched: Watched,
    known: BTreeMap<CgroupId, PodCgroup>,
    events: mpsc::UnboundedSender<CgroupEvent>,
}

/// The root that is watched.
struct Watched {
    inotify: OwnedFd,
    id: CgroupId,
}

impl Watched {
    /// Watches the root, and the directory that it is in: the kernel does not tell that a watched
    /// cgroup is gone.
    fn new(root: &Path) -> io::Result<Self> {
        let inotify =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        if let Some(parent) = root.parent() {
            watch(&inotify, parent)?;
        }
        // Where another takes its place between the two, the next scan finds it.
        let id = id_of(root)?;
        watch(&inotify, root)?;
        Ok(Self { inotify, id })
    }
}

impl Watcher {
    fn new(root: &Path, events: mpsc::UnboundedSender<CgroupEvent>) -> io::Result<Self> {
        let watched = Watched::new(root)?;
        Ok(Self { root: root.to_owned(), watched, known: BTreeMap::new(), events })
    }

    fn run(mut self, stop: &OwnedFd) {
        while let Err(error) = self.follow(stop) {
            let root = self.root.display();
            if error.kind() == io::ErrorKind::NotFound {
                tracing::warn!(%root, "the pods' root cgroup is gone");
            } else {
                tracing::error!(%root, %error, "the pods' root cgroup cannot be watched");
            }
            self.send(CgroupEvent::Lost(error.to_string()));
            if !self.recover(stop) {
                return;
            }
            tracing::info!(root = %self.root.display(), "the pods' root cgroup is watched again");
        }
    }

    /// Follows what happens until it is to stop.
    fn follow(&mut self, stop: &OwnedFd) -> io::Result<()> {
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.watched.inotify.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            match poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let [_, stopped] = ready;
            if !stopped.revents().is_empty() || self.events.is_closed() {
                return Ok(());
            }
            // What an event says may be past already, or lost where there were too many: what is
            // there now is what counts. A scan of some hundred directories takes well under a
            // millisecond.
            self.drain();
            self.scan()?;
        }
    }

    /// Tries to watch the root again until it can. False where it is to stop.
    fn recover(&mut self, stop: &OwnedFd) -> bool {
        let mut pause = RETRY;
        loop {
            match Watched::new(&self.root) {
                Ok(watched) => {
                    self.watched = watched;
                    // First, for what comes below a root made anew needs its programs.
                    self.send(CgroupEvent::Found);
                    match self.scan() {
                        Ok(()) => return true,
                        Err(error) => self.send(CgroupEvent::Lost(error.to_string())),
                    }
                }
                Err(error) => tracing::debug!(%error, "watching the pods' root cgroup again"),
            }
            if !self.root.exists() {
                for pod in std::mem::take(&mut self.known).into_values() {
                    self.send(CgroupEvent::Removed(pod));
                }
            }
            let mut stopped = [PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
            if matches!(poll(&mut stopped, Some(&timeout)), Ok(1..)) || self.events.is_closed() {
                return false;
            }
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }

    /// Whoever listens may have gone.
    fn send(&self, event: CgroupEvent) {
        let _gone = self.events.send(event);
    }

    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.watched.inotify, &mut buffer);
        while reader.next().is_ok() {}
    }

    /// Compares what is there with what is known.
    fn scan(&mut self) -> io::Result<()> {
        if id_of(&self.root)? != self.watched.id {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it was made anew"));
        }
        self.watch_classes()?;
        let found: BTreeMap<CgroupId, PodCgroup> =
            find_pods(&self.root)?.into_iter().map(|pod| (pod.id, pod)).collect();
        for pod in self.known.values().filter(|pod| !found.contains_key(&pod.id)) {
            self.send(CgroupEvent::Removed(pod.clone()));
        }
        for pod in found.values().filter(|pod| !self.known.contains_key(&pod.id)) {
            self.send(CgroupEvent::Added(pod.clone()));
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
                match watch(&self.watched.inotify, &path) {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// More changes than the kernel remembers: the last ones are found all the same.
    #[test]
    fn what_does_not_fit_the_queue_is_not_missed() {
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        let root = tempfile::tempdir().unwrap();
        let (sender, mut events) = mpsc::unbounded_channel();
        let mut watcher = Watcher::new(root.path(), sender).unwrap();
        let other = Watched::new(root.path()).unwrap();
        for _ in 0..limit / 2 {
            std::fs::create_dir(root.path().join("podgone")).unwrap();
            std::fs::remove_dir(root.path().join("podgone")).unwrap();
        }
        let last = root.path().join("burstable/podlast");
        std::fs::create_dir_all(&last).unwrap();

        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&other.inotify, &mut buffer);
        let mut overflown = false;
        while let Ok(event) = reader.next() {
            overflown |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
        }
        assert!(overflown, "{limit} events fit");

        watcher.drain();
        watcher.scan().unwrap();
        let id = id_of(&last).unwrap();
        let pod = PodCgroup { uid: "last".into(), id, path: last };
        assert_eq!(events.try_recv().unwrap(), CgroupEvent::Added(pod));
        // Its class is watched, too.
        std::fs::create_dir(root.path().join("burstable/podnext")).unwrap();
        let mut ready = [PollFd::from_borrowed_fd(watcher.watched.inotify.as_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut ready, Some(&Timespec { tv_sec: 60, tv_nsec: 0 })).unwrap(), 1);
    }
}
