//! Long steps, one after the other, each with its progress.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::repository;

/// How many of a failed step's last lines are printed; its log has all.
const LINES_SHOWN: usize = 200;

/// Runs steps and shows them: a spinner with the last line of output on a terminal, one line at
/// the beginning and one at the end elsewhere.
pub struct Steps {
    terminal: bool,
}

/// What a step that succeeded has printed.
pub struct Output {
    /// All lines of both its streams, in the order in which they came.
    pub lines: Vec<String>,
}

impl Steps {
    /// Finds out whether there is a terminal.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Runs `command` to its end. Its output goes to a log under `target/xtask/`, whose end is
    /// printed if the command fails.
    pub fn run(&mut self, title: &str, command: &mut Command) -> Result<Output> {
        tracing::debug!(?command, "step");
        self.during(title, |bar| {
            let (reader, writer) = std::io::pipe()?;
            command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
            let program = command.get_program().to_string_lossy().into_owned();
            let mut child = command
                .spawn()
                .with_context(|| format!("cannot run `{program}`: is it installed?"))?;
            // The command holds the pipe's writing end too; the reader would never see the end.
            command.stdout(Stdio::null()).stderr(Stdio::null());

            let log = log_of(title);
            fs::create_dir_all(log.parent().unwrap_or(&log))?;
            let mut file = fs::File::create(&log)?;
            let mut lines = Vec::new();
            for line in BufReader::new(reader).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
                writeln!(file, "{line}")?;
                bar.set_message(line.clone());
                lines.push(line);
            }
            let status = child.wait()?;
            if status.success() {
                return Ok(Output { lines });
            }
            let shown: VecDeque<_> = lines.iter().rev().take(LINES_SHOWN).rev().collect();
            let left_out = lines.len() - shown.len();
            bar.suspend(|| {
                if left_out > 0 {
                    eprintln!("... {left_out} lines before these are in {}", log.display());
                }
                for line in shown {
                    eprintln!("{line}");
                }
            });
            bail!("`{program}` failed ({status}); its output is above and in {}", log.display())
        })
    }

    /// Does `work` while a spinner with `title` turns; the work may set the bar's message.
    pub fn during<T>(
        &mut self,
        title: &str,
        work: impl FnOnce(&ProgressBar) -> Result<T>,
    ) -> Result<T> {
        let bar = if self.terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        if !self.terminal {
            eprintln!("   {title} ...");
        }
        let start = Instant::now();
        let result = work(&bar);
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(value) => {
                eprintln!("ok {title} ({seconds:.1} s)");
                Ok(value)
            }
            Err(error) => {
                eprintln!("FAILED {title} ({seconds:.1} s)");
                Err(error.context(title.to_owned()))
            }
        }
    }

    /// A line between steps.
    pub fn say(&self, line: &str) {
        eprintln!("{line}");
    }
}

/// Where the output of the step with this title is kept.
pub fn log_of(title: &str) -> PathBuf {
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    repository::target().join("xtask").join(format!("{}.log", name.trim_matches('-')))
}
