//! Format, lints, licences, unit tests and end-to-end tests, with a summary at the end.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use comfy_table::{Table, presets};

use crate::artifacts::{self, BpfToolchain};
use crate::kubernetes;
use crate::repository::find_command;
use crate::setup::{self, Purpose};
use crate::steps::{Output, Steps, log_of};

/// Crates whose tests need root, namespaces and the release binaries.
const END_TO_END: &str = "weft-tests";

/// Tests of what the agent and the authority do with objects. They start etcd and an API server,
/// which have to be built.
const API_SERVER: [&str; 6] = ["--package", "weft-agent", "--test", "ca", "--test", "kubernetes"];

/// Tests of what a mesh does while its API server, authority or agents are away: beside nothing
/// else, for they are about time.
const AWAY: [&str; 6] = ["--package", "weft-tests", "--features", "client", "--test", "api_server"];

/// `cargo xtask test`
#[derive(Args)]
pub struct Arguments {
    /// Leave out the end-to-end tests.
    #[arg(long)]
    no_end_to_end: bool,
    /// Run the tests on Kubernetes also where it has to be built first (10 min on 2 cores). Where
    /// it is built already, they are run anyway.
    #[arg(long, conflicts_with = "no_end_to_end")]
    kubernetes: bool,
}

/// Runs all checks, also after one that failed.
///
/// # Errors
/// When one of them failed, or what they need cannot be installed or built.
pub fn run(steps: &mut Steps, arguments: &Arguments) -> Result<()> {
    setup::run(steps, &[Purpose::Build, Purpose::Run, Purpose::Check])?;
    let mut checks = Checks { steps, results: Vec::new() };
    checks.check("format", cargo(&["fmt", "--all", "--check"]));
    checks.check("format of the eBPF programs", programs_format());
    let start = Instant::now();
    let built = artifacts::build(checks.steps);
    checks.note("build", start.elapsed(), built.map(|()| "release".to_owned()));
    checks.check(
        "clippy",
        cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    checks.programs_clippy();
    checks.deny();
    // Some crates have tests on the test cluster too, which starts what was built above.
    let tests = |arguments: &[&str]| {
        let mut command = cargo(&["test", "--locked", "--no-fail-fast"]);
        command.args(arguments).env(artifacts::BINARIES, artifacts::folder());
        command
    };
    checks.test("unit tests", tests(&["--workspace", "--exclude", END_TO_END]));
    if arguments.no_end_to_end {
        checks.skip("end-to-end tests", "left out as asked");
    } else if rustix::process::geteuid().is_root() {
        checks.test("end-to-end tests", tests(&["--package", END_TO_END]));
        let title = "tests on an API server";
        match kubernetes::build_control_plane(checks.steps) {
            Ok(()) => {
                checks.test(title, tests(&API_SERVER));
                checks.test("the mesh while an API server fails", tests(&AWAY));
            }
            Err(error) => checks.note(title, Duration::ZERO, Err(error)),
        }
        if checks.has_kubernetes(arguments.kubernetes) {
            let arguments = ["--package", END_TO_END, "--test", "kubernetes"];
            checks.test("tests on Kubernetes", tests(&arguments));
        }
    } else {
        checks.note(
            "end-to-end tests",
            Duration::ZERO,
            Err(anyhow::anyhow!("they make namespaces and load eBPF programs: run as root")),
        );
    }
    checks.finish()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments);
    command
}

fn programs_format() -> Command {
    let mut command = cargo(&["fmt", "--check"]);
    command.current_dir("ebpf");
    command
}

enum Outcome {
    Passed(String),
    Skipped(String),
    Failed(String),
}

struct Checks<'a> {
    steps: &'a mut Steps,
    results: Vec<(String, Duration, Outcome)>,
}

impl Checks<'_> {
    fn check(&mut self, title: &str, mut command: Command) {
        let start = Instant::now();
        let result = self.steps.run(title, &mut command).map(|_| String::new());
        self.note(title, start.elapsed(), result);
    }

    fn test(&mut self, title: &str, mut command: Command) {
        let start = Instant::now();
        let result = match self.steps.run(title, &mut command) {
            Ok(output) => count_tests(&output),
            Err(error) => Err(match failed_tests(title) {
                Some(failed) => anyhow::anyhow!(failed),
                None => error,
            }),
        };
        self.note(title, start.elapsed(), result);
    }

    /// Whether Kubernetes is there, built for this if `build` says so.
    fn has_kubernetes(&mut self, build: bool) -> bool {
        let title = "build Kubernetes";
        if !build && matches!(kubernetes::is_built(), Ok(false)) {
            let reason = "not built yet: `--kubernetes`, or `cargo xtask kubernetes` once";
            self.skip("tests on Kubernetes", reason);
            return false;
        }
        let start = Instant::now();
        let built = kubernetes::build(self.steps);
        let there = built.is_ok();
        self.note(title, start.elapsed(), built.map(|()| String::new()));
        there
    }

    fn programs_clippy(&mut self) {
        let title = "clippy of the eBPF programs";
        let command = match BpfToolchain::find() {
            Some(BpfToolchain::Debian) if find_command_in("/usr/bin/cargo-clippy") => {
                BpfToolchain::Debian.cargo("clippy")
            }
            Some(BpfToolchain::Nightly) => BpfToolchain::Nightly.cargo("clippy"),
            _ => return self.skip(title, "Debian's rust-web-clippy is not installed"),
        };
        match command {
            Ok(mut command) => {
                command.args(["--locked", "--", "-D", "warnings"]);
                self.check(title, command);
            }
            Err(error) => self.note(title, Duration::ZERO, Err(error)),
        }
    }

    fn deny(&mut self) {
        let title = "licences, sources and bans";
        if find_command("cargo-deny").is_none() {
            return self.skip(title, "cargo-deny is not installed");
        }
        self.check(title, cargo(&["deny", "--locked", "check", "licenses", "sources", "bans"]));
        let title = "advisories";
        let start = Instant::now();
        let result = self.steps.during(title, |_| {
            let output = cargo(&["deny", "--locked", "check", "advisories"]).output()?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            match output.status.success() {
                true => Ok(None),
                // Without network there is nothing to compare with; that is not our mistake.
                false if text.contains("failed to fetch advisory database") => {
                    Ok(Some("the advisory database cannot be fetched from here"))
                }
                false => bail!("{text}"),
            }
        });
        match result {
            Ok(None) => self.note(title, start.elapsed(), Ok(String::new())),
            Ok(Some(reason)) => self.skip(title, reason),
            Err(error) => self.note(title, start.elapsed(), Err(error)),
        }
    }

    fn skip(&mut self, title: &str, reason: &str) {
        self.steps.say(&format!("-- {title}: {reason}"));
        self.results.push((title.into(), Duration::ZERO, Outcome::Skipped(reason.into())));
    }

    fn note(&mut self, title: &str, time: Duration, result: Result<String>) {
        let outcome = match result {
            Ok(detail) => Outcome::Passed(detail),
            Err(error) => {
                self.steps.say(&format!("FAILED {title}: {error:#}"));
                Outcome::Failed(error.root_cause().to_string())
            }
        };
        self.results.push((title.into(), time, outcome));
    }

    fn finish(self) -> Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        for (title, time, outcome) in &self.results {
            let (word, detail) = match outcome {
                Outcome::Passed(detail) => ("ok", detail),
                Outcome::Skipped(reason) => ("left out", reason),
                Outcome::Failed(reason) => ("FAILED", reason),
            };
            table.add_row([word, title, &format!("{:.1} s", time.as_secs_f64()), detail]);
        }
        println!("\n{table}");
        let failed =
            self.results.iter().filter(|(.., outcome)| matches!(outcome, Outcome::Failed(_)));
        let failed = failed.count();
        if failed > 0 {
            bail!("{failed} of {} checks failed", self.results.len());
        }
        println!("all checks passed");
        Ok(())
    }
}

fn find_command_in(path: &str) -> bool {
    std::path::Path::new(path).exists()
}

/// Which tests failed, by the log of the step; none if it failed otherwise.
fn failed_tests(title: &str) -> Option<String> {
    let log = fs::read_to_string(log_of(title)).ok()?;
    let failed =
        log.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let failed: Vec<_> = failed.collect();
    (!failed.is_empty()).then(|| format!("{} failed: {}", failed.len(), failed.join(", ")))
}

/// Sums up cargo's `test result:` lines.
fn count_tests(output: &Output) -> Result<String> {
    let (mut passed, mut ignored) = (0_u64, 0_u64);
    for line in output.lines.iter().filter(|line| line.starts_with("test result:")) {
        for part in line.split(['.', ';']) {
            let mut words = part.split_whitespace();
            match (words.next().and_then(|n| n.parse::<u64>().ok()), words.next()) {
                (Some(count), Some("passed")) => passed += count,
                (Some(count), Some("ignored")) => ignored += count,
                _ => {}
            }
        }
    }
    ensure!(passed > 0, "no test ran");
    Ok(format!("{passed} passed, {ignored} ignored"))
}
