use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::steps::Steps;

/// What a machine's console said.
#[derive(Default)]
pub struct Report {
    /// As `uname -r` says it.
    pub release: String,
    /// What ran.
    pub parts: Vec<Part>,
    /// Whether it came to the end of the suite.
    pub complete: bool,
}

/// One command of the suite.
pub struct Part {
    /// What it is called.
    pub name: String,
    /// What it printed.
    pub lines: Vec<String>,
    /// Its exit status; none if it did not come to its end.
    pub status: Option<i32>,
}

impl Part {
    /// What of the output is for the user: of tests the verdicts, and all of what failed.
    pub fn shown(&self) -> impl Iterator<Item = &str> {
        let tests = self.lines.iter().any(|line| is_verdict(line));
        let all = self.status != Some(0) || !tests;
        self.lines.iter().map(String::as_str).filter(move |line| all || is_verdict(line))
    }
}

fn is_verdict(line: &str) -> bool {
    line.starts_with("test ") && line.contains(['.', ':'])
}

/// Boots the kernel with the archive as its file system and reads its console to the end.
///
/// # Errors
/// When QEMU cannot be run or the machine does not boot. A suite that does not come to its end
/// in time is an incomplete report.
pub fn boot(
    steps: &mut Steps,
    kernel: &Kernel,
    archive: &Path,
    memory_mib: u32,
    limit: Duration,
) -> Result<Report> {
    steps.during(&format!("tests on {}", kernel.release), |bar| {
        let mut machine = Machine::start(kernel, archive, memory_mib)?;
        let console = machine.0.stdout.take().context("the machine has a console")?;
        let mut report = Report::default();
        for line in lines_until(console, Instant::now() + limit) {
            bar.set_message(line.clone());
            report.read(line);
            if report.complete {
                break;
            }
        }
        ensure!(
            !report.release.is_empty(),
            "{} did not boot within {limit:?}; see `qemu-system-x86_64 -version`",
            kernel.release
        );
        Ok(report)
    })
}

impl Report {
    fn read(&mut self, line: String) {
        let Some(message) = line.strip_prefix("weft-vm: ") else {
            if let Some(part) = self.parts.last_mut().filter(|part| part.status.is_none()) {
                part.lines.push(line);
            }
            return;
        };
        match message.split_once(' ') {
            Some(("booted", release)) => self.release = release.to_owned(),
            Some(("begin", name)) => {
                self.parts.push(Part { name: name.to_owned(), lines: Vec::new(), status: None });
            }
            Some(("status", status)) => {
                if let Some(part) = self.parts.last_mut() {
                    part.status = status.parse().ok();
                }
            }
            _ if message == "end" => self.complete = true,
            _ => tracing::warn!("{message}"),
        }
    }
}

/// A running QEMU; it is killed when dropped.
struct Machine(Child);

impl Machine {
    fn start(kernel: &Kernel, archive: &Path, memory_mib: u32) -> Result<Self> {
        let child = Command::new("qemu-system-x86_64")
            // Not every host has a KVM that boots an ordinary kernel; emulation works anywhere.
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", &memory_mib.to_string(), "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-nic", "none"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(archive)
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        Ok(Self(child))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill() {
            tracing::debug!(%error, "the machine is off already");
        }
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "waiting for qemu");
        }
    }
}

/// Lines of `console` until it ends or the deadline has come.
fn lines_until(
    console: impl Read + Send + 'static,
    deadline: Instant,
) -> impl Iterator<Item = String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    std::iter::from_fn(move || {
        receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    })
}
