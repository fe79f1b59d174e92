use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::EXIT_FOUND_WRONG;
use crate::cli::output::{TableOrJson, print};
use crate::kernel::{HeldConnection, Kernel, KernelError, Remains};

/// How long the kernel may take to free a program whose last link has gone.
const FREED_WITHIN: Duration = Duration::from_secs(10);
/// How many connections are named.
const SHOWN: usize = 5;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What was in a node's kernel, and what is left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Where the pins were. They are gone.
    pub pins: String,
    /// What they held.
    pub found: Counts,
    /// Objects that are still there: programs and maps as `name (id)`.
    pub left: Vec<String>,
    /// Accelerated connections that did not read what was redirected to them, as `end - end`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// Why accelerated connections could not go over to TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why the kernel could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

/// How many objects there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub programs: usize,
    pub maps: usize,
    pub links: usize,
}

pub(super) fn run(pins: &Path, run_dir: &Path, output: TableOrJson) -> anyhow::Result<ExitCode> {
    let held = Remains::pinned_under(pins);
    let removed = Kernel::remove(pins)?;
    let files = remove_run_files(run_dir);
    let mut report = Report {
        pins: pins.display().to_string(),
        unread: removed.held.iter().map(HeldConnection::to_string).collect(),
        trouble: removed.trouble,
        ..Report::default()
    };
    match held.and_then(|held| Ok((await_freed(&held)?, held))) {
        Ok((left, held)) => {
            report.found = Counts {
                programs: held.programs.len(),
                maps: held.maps.len(),
                links: held.links.len(),
            };
            report.left = names(&left);
        }
        Err(error) => report.unknown = Some(error.to_string()),
    }
    match output {
        TableOrJson::Json => print(serde_json::to_string(&report)?)?,
        TableOrJson::Table => print(text(&report))?,
    }
    files?;
    let clean = report.left.is_empty() && report.unknown.is_none();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND_WRONG) })
}

/// Waits until the kernel has freed everything. Returns what it has not.
fn await_freed(held: &Remains) -> Result<Remains, KernelError> {
    let deadline = Instant::now() + FREED_WITHIN;
    loop {
        let left = held.left()?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn names(left: &Remains) -> Vec<String> {
    let programs = left.programs.iter().map(|(id, name)| format!("program {name} ({id})"));
    let maps = left.maps.iter().map(|(id, name)| format!("map {name} ({id})"));
    let links = left.links.iter().map(|id| format!("link {id}"));
    programs.chain(maps).chain(links).collect()
}

/// Sockets, marker and lock of an agent that is no more. The directory itself goes if it is empty
/// and not a mount.
fn remove_run_files(run_dir: &Path) -> anyhow::Result<()> {
    for name in ["agent.sock", "proxy.sock", "ready", "lock"] {
        let path = run_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    match fs::remove_dir(run_dir) {
        // Whoever put something there may need it.
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Err(error).with_context(|| run_dir.display().to_string())
        }
        _ => Ok(()),
    }
}

pub(super) fn text(report: &Report) -> String {
    let Counts { programs, maps, links } = report.found;
    let pins = &report.pins;
    match (&report.unknown, report.left.is_empty()) {
        (Some(unknown), _) => {
            format!("the pins below {pins} are removed; whether something is left: {unknown}")
        }
        (None, true) => format!(
            "nothing of Weft is left in the kernel ({programs} programs, {maps} maps and {links} \
             links were pinned below {pins})"
        ),
        (None, false) => format!(
            "the pins below {pins} are removed, but somebody still holds {}: {}",
            report.left.join(", "),
            holders(report)
        ),
    }
}

/// Who holds what is left, and what can be done about it.
fn holders(report: &Report) -> String {
    if let Some(trouble) = &report.trouble {
        return format!("{trouble}. It goes with the last accelerated connection: restart its pod");
    }
    match report.unread.len() {
        0 => "most likely a process that waits in recv() on a connection that was accelerated, \
              until it gets its next byte, or is restarted"
            .to_owned(),
        count => {
            let shown = report.unread[..count.min(SHOWN)].join(", ");
            let more = if count > SHOWN { ", ..." } else { "" };
            format!(
                "{count} accelerated connections have not read what was sent to them ({shown}\
                 {more}). It goes when they are closed: restart the pods that do not read"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agents_own_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let run = directory.path().join("weft");
        remove_run_files(&run).unwrap();
        fs::create_dir(&run).unwrap();
        for name in ["agent.sock", "lock", "notes"] {
            fs::write(run.join(name), "").unwrap();
        }
        remove_run_files(&run).unwrap();
        let left: Vec<_> = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        fs::remove_file(run.join("notes")).unwrap();
        remove_run_files(&run).unwrap();
        assert!(!run.exists());
    }

    #[test]
    fn what_is_left_is_named() {
        let mut report = Report { pins: "/sys/fs/bpf/weft".into(), ..Report::default() };
        assert!(text(&report).starts_with("nothing of Weft is left"));
        report.left.push("program pod_egress (7)".into());
        assert!(text(&report).contains("pod_egress (7)"));
        assert!(text(&report).contains("recv()"));
        report.unread = (0..7).map(|port| format!("10.0.0.1:{port} - 10.0.0.2:80")).collect();
        let said = text(&report);
        assert!(said.contains("7 accelerated connections"), "{said}");
        assert!(said.contains("10.0.0.1:4 - 10.0.0.2:80, ...)"), "{said}");
    }
}
