use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::cli::EXIT_FOUND_WRONG;
use crate::cli::output::{TableOrJson, print};
use crate::kernel::{Kernel, KernelError, Remains};

/// How long the kernel may take to free a program whose last link has gone.
const FREED_WITHIN: Duration = Duration::from_secs(10);
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
    Kernel::remove(pins)?;
    let files = remove_run_files(run_dir);
    let mut report = Report { pins: pins.display().to_string(), ..Report::default() };
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
            "the pins below {pins} are removed, but somebody still holds {}",
            report.left.join(", ")
        ),
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
    }
}
