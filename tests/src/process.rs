use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;

use crate::enter::{Privilege, enter};
use crate::place::Place;
use crate::wait::eventually_within;

/// How long [`Run::output`] lets a program run.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is about to run in a place.
#[derive(Debug)]
pub struct Run<'a> {
    place: &'a Place,
    command: Command,
    program: OsString,
    privilege: Privilege,
    limit: Duration,
}

/// What a program that has ended leaves.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: String,
    /// What it wrote as errors.
    pub stderr: String,
}

/// A running process and its process group. Both are killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    detached: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(place: &'a Place, program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref().to_owned();
        let mut command = Command::new(&program);
        command.stdin(Stdio::null());
        Self { place, command, program, privilege: place.privilege(), limit: PATIENCE }
    }

    /// Names it in messages and logs, where the program is not what it is known by.
    pub fn called(mut self, name: impl Into<OsString>) -> Self {
        self.program = name.into();
        self
    }

    /// Appends an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Appends arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives it something to read.
    pub fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Runs it as this user and group, without capabilities, with `no_new_privs`.
    pub fn user(mut self, id: u32) -> Self {
        self.privilege = Privilege::User(id);
        self
    }

    /// Runs it with all of root's capabilities, as a privileged container.
    pub fn privileged(mut self) -> Self {
        self.privilege = Privilege::Root;
        self
    }

    /// How long [`Self::output`] lets it run (60 s if this is not called).
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it. Its output goes to files that [`Process`] reads.
    pub fn spawn(mut self) -> Result<Process> {
        let (stdout, stderr) = self.logs()?;
        self.command.stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = self.start()?;
        let name = self.to_string();
        Ok(Process { child, name, stdout, stderr, detached: false })
    }

    /// Runs it to its end. An error if it cannot be started or does not end in time; how it
    /// ended is for the caller to judge.
    pub fn output(self) -> Result<Output> {
        let limit = self.limit;
        let mut process = self.spawn()?;
        let status = process.wait(limit)?;
        let output = Output { status, stdout: process.stdout(), stderr: process.stderr() };
        for log in [&process.stdout, &process.stderr] {
            fs::remove_file(log).ok();
        }
        Ok(output)
    }

    /// Runs it to its end with the caller's own terminal.
    pub fn interactive(mut self) -> Result<ExitStatus> {
        self.command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let mut child = self.start()?;
        Ok(child.wait()?)
    }

    fn start(&mut self) -> Result<Child> {
        let namespace = self.place.namespace().open()?;
        let procs = crate::cgroup::open_procs(self.place.cgroup())?;
        enter(&mut self.command, namespace, procs, self.privilege);
        self.command.spawn().with_context(|| format!("cannot start {self}"))
    }

    fn logs(&self) -> Result<(PathBuf, PathBuf)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = self.place.logs();
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let program = Path::new(&self.program).file_name().unwrap_or_default();
        let stem = format!("{}-{}-{count}", std::process::id(), program.display());
        Ok((directory.join(format!("{stem}.out")), directory.join(format!("{stem}.err"))))
    }
}

impl std::fmt::Display for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.program.display(), self.place.name())
    }
}

impl Output {
    /// The lines of its output that are JSON.
    pub fn json(&self) -> Vec<Value> {
        json_lines(&self.stdout)
    }

    /// The output of a program that succeeded; an error with what it said otherwise.
    pub fn success(self) -> Result<String> {
        ensure!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

impl Process {
    /// Its process id, which is its process group's as well.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// The lines so far that are JSON.
    pub fn json(&self) -> Vec<Value> {
        json_lines(&self.stdout())
    }

    /// Waits for a line of JSON whose `event` is this.
    pub fn await_event(&mut self, limit: Duration, event: &str) -> Result<Value> {
        let line = self.await_line_within(limit, &format!("\"event\":\"{event}\""))?;
        Ok(serde_json::from_str(&line)?)
    }

    /// What it has written as errors so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// The last lines of what it has written, for an error.
    pub fn tail(&self) -> String {
        self.all()
    }

    /// Where its output and its errors are kept.
    pub fn logs(&self) -> [&Path; 2] {
        [&self.stdout, &self.stderr]
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a line of its output that contains `text`.
    pub fn await_line(&mut self, text: &str) -> Result<String> {
        self.await_line_within(PATIENCE, text)
    }

    /// As [`Self::await_line`], with its own limit.
    pub fn await_line_within(&mut self, limit: Duration, text: &str) -> Result<String> {
        self.await_line_of(limit, text, Self::stdout)
    }

    /// As [`Self::await_line_within`], of what it writes as errors (its log).
    pub fn await_error_within(&mut self, limit: Duration, text: &str) -> Result<String> {
        self.await_line_of(limit, text, Self::stderr)
    }

    fn await_line_of(
        &mut self,
        limit: Duration,
        text: &str,
        written: fn(&Self) -> String,
    ) -> Result<String> {
        let what = format!("{} to write {text:?}", self.name);
        let found = eventually_within(limit, &what, || {
            let ended = !self.is_running();
            let output = written(self);
            let line = output.lines().find(|line| line.contains(text)).map(str::to_owned);
            (line.is_some() || ended).then_some(line)
        });
        match found {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended without {text:?}: {}", self.name, self.all()),
            Err(error) => Err(error.context(self.all())),
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} did not end within {limit:?}: {}", self.name, self.all());
            }
            let Some(pid) = self.group() else { continue };
            let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
            let timeout = Timespec::try_from(left)?;
            poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&timeout))?;
        }
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.group().context("no process id")?;
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// Kills it and all of its process group, and waits for its end.
    pub fn kill(&mut self) {
        if let Some(group) = self.group()
            && matches!(self.child.try_wait(), Ok(None))
        {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.child.wait().ok();
    }

    /// Leaves it running when this is dropped, for a cluster that is kept.
    pub fn detach(mut self) {
        self.detached = true;
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    fn all(&self) -> String {
        format!("stdout: {}\nstderr: {}", tail(&self.stdout()), tail(&self.stderr()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.kill();
        }
    }
}

fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The last lines, for an error.
fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
