use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::notify;

/// The marker that a first policy is in force: the agent's process id and the generation. What an
/// agent leaves that was killed is removed when the next begins.
pub fn ready_file(run_dir: &Path) -> PathBuf {
    run_dir.join("ready")
}

/// Makes the marker once, and removes it when dropped.
#[derive(Debug)]
pub struct Ready {
    path: PathBuf,
    set: bool,
}

impl Ready {
    /// Removes what an earlier agent may have left.
    ///
    /// # Errors
    /// Where the file system refuses.
    pub fn new(run_dir: &Path) -> anyhow::Result<Self> {
        let path = ready_file(run_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| path.display().to_string())
            }
            _ => Ok(Self { path, set: false }),
        }
    }

    /// A policy is in force.
    pub fn set(&mut self, generation: u32) {
        if self.set {
            return;
        }
        // Under another name first: whoever sees it may read it.
        let early = self.path.with_extension("new");
        let written = fs::write(&early, format!("{} {generation}\n", std::process::id()))
            .and_then(|()| fs::rename(&early, &self.path));
        match written {
            Ok(()) => self.set = true,
            Err(error) => tracing::error!(path = %self.path.display(), %error, "marker"),
        }
        notify("READY=1");
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        if self.set {
            drop(fs::remove_file(&self.path));
        }
    }
}
