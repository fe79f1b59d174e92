use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::AsFd;

/// Where iproute2 keeps named network namespaces.
const DIRECTORY: &str = "/run/netns";

/// A named network namespace, as `ip netns` makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNamespace {
    name: String,
}

impl NetworkNamespace {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Those whose name starts with `prefix`.
    pub(crate) fn with_prefix(prefix: &str) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).map(Self::new).collect()
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    pub(crate) fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("network namespace {} is gone", path.display()))
    }

    /// Runs `work` on a thread in this namespace: sockets it opens belong there, and
    /// `/proc/thread-self/net` and `/proc/sys/net` speak of it. The cgroup stays the caller's.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        let run = move || -> Result<T> {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let entered = std::thread::scope(|scope| scope.spawn(run).join());
        match entered {
            Ok(result) => result.with_context(|| format!("cannot enter {}", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Sets kernel parameters below `/proc/sys/net`.
    pub(crate) fn set_parameters(&self, parameters: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in parameters {
                let path = Path::new("/proc/sys/net").join(name);
                fs::write(&path, value)
                    .with_context(|| format!("cannot set {} to {value}", path.display()))?;
            }
            Ok(())
        })?
    }

    /// Runs `ip` commands in it.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        ip_batch(&["-n", &self.name], lines)
    }
}

/// Runs `ip` commands, one a line, in the namespace that we are in.
pub(crate) fn ip_batch(options: &[&str], lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: install iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).context("cannot write to ip")?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("ip {} failed: {}\n{lines}", options.join(" "), error.trim());
    }
    Ok(())
}
