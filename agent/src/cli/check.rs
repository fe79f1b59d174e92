use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::EXIT_FOUND_WRONG;
use super::output::{Paint, TableOrJson, lines, print, table};
use crate::kernel::cgroups;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Root of the pods' cgroups [default: kubepods.slice or kubepods in the hierarchy]
    #[arg(long, env = "WEFT_PODS_CGROUP", value_name = "PATH")]
    pods_cgroup: Option<PathBuf>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
}

/// What a look found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: Verdict,
    found: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Missing,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = check(args);
    let missing = findings.iter().any(|finding| finding.ok == Verdict::Missing);
    match args.output {
        TableOrJson::Json => print(serde_json::to_string(&findings)?)?,
        TableOrJson::Table => print(text(&findings, Paint::stdout()))?,
    }
    Ok(if missing { ExitCode::from(EXIT_FOUND_WRONG) } else { ExitCode::SUCCESS })
}

fn check(args: &CheckArgs) -> Vec<Finding> {
    let mut findings = vec![kernel_version(), btf(), root(), bpf_file_system()];
    let hierarchy = cgroups::find_hierarchy();
    findings.push(match &hierarchy {
        Ok(path) => Finding::ok("cgroup v2", path.display().to_string()),
        Err(error) => Finding::missing("cgroup v2", error.to_string()),
    });
    let pods = args
        .pods_cgroup
        .clone()
        .map(Ok)
        .or_else(|| hierarchy.ok().map(|hierarchy| super::agent::find_pods_cgroup(&hierarchy)));
    match pods {
        Some(Ok(pods)) if pods.is_dir() => {
            let count = cgroups::find_pods(&pods).map(|pods| pods.len()).unwrap_or_default();
            findings
                .push(Finding::ok("pods' cgroups", format!("{} ({count} pods)", pods.display())));
            findings.extend(hooks(&pods));
        }
        Some(Ok(pods)) => findings
            .push(Finding::missing("pods' cgroups", format!("{} is no directory", pods.display()))),
        Some(Err(error)) => findings.push(Finding::missing("pods' cgroups", error.to_string())),
        None => {}
    }
    findings
}

impl Finding {
    fn ok(check: &'static str, found: String) -> Self {
        Self { check, ok: Verdict::Ok, found }
    }

    fn warning(check: &'static str, found: String) -> Self {
        Self { check, ok: Verdict::Warning, found }
    }

    fn missing(check: &'static str, found: String) -> Self {
        Self { check, ok: Verdict::Missing, found }
    }
}

fn kernel_version() -> Finding {
    const CHECK: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 6) => {
            Finding::ok(CHECK, release)
        }
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 1) => Finding::warning(
            CHECK,
            format!("{release}: no tcx before 6.6, so frames sent by AF_PACKET are not checked"),
        ),
        (Some(Ok(_)), Some(Ok(_))) => {
            Finding::missing(CHECK, format!("{release}: Weft is tested from Linux 6.1 on"))
        }
        _ => Finding::warning(CHECK, format!("{release:?}: no version")),
    }
}

fn btf() -> Finding {
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        return Finding::ok("BTF", path.display().to_string());
    }
    Finding::missing(
        "BTF",
        format!("{} is not there: the kernel needs CONFIG_DEBUG_INFO_BTF", path.display()),
    )
}

fn root() -> Finding {
    const CHECK: &str = "capabilities";
    // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (capability.h).
    const NEEDED: [(u32, &str); 4] =
        [(12, "NET_ADMIN"), (21, "SYS_ADMIN"), (38, "PERFMON"), (39, "BPF")];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or_default();
    let lacking: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| effective & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        return Finding::ok(CHECK, "BPF, PERFMON, NET_ADMIN, SYS_ADMIN".to_owned());
    }
    Finding::missing(CHECK, format!("{} are missing: run as root", lacking.join(", ")))
}

fn bpf_file_system() -> Finding {
    const CHECK: &str = "BPF file system";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| path.to_owned())
    });
    match mounted {
        Some(path) => Finding::ok(CHECK, path),
        None => Finding::warning(CHECK, "not mounted; the agent mounts it".to_owned()),
    }
}

/// Who else has programs where ours are attached.
fn hooks(pods: &Path) -> Vec<Finding> {
    const CHECK: &str = "hooks";
    match crate::kernel::programs_on_hooks(pods) {
        Ok(found) if found.is_empty() => {
            vec![Finding::ok(CHECK, "nobody else is on them".to_owned())]
        }
        Ok(found) => found
            .into_iter()
            .map(|program| {
                let text = format!(
                    "{}: program {} {:?} at {}",
                    program.hook,
                    program.id,
                    program.name,
                    program.cgroup.display()
                );
                if program.ours {
                    Finding::ok(CHECK, format!("{text} (Weft's own)"))
                } else {
                    Finding::warning(CHECK, format!("{text} runs beside Weft's"))
                }
            })
            .collect(),
        Err(error) => vec![Finding::warning(CHECK, error.to_string())],
    }
}

fn text(findings: &[Finding], paint: Paint) -> String {
    let mut table = table(&["CHECK", "", "FOUND"]);
    for finding in findings {
        let verdict = match finding.ok {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "missing",
        };
        table.add_row([finding.check, verdict, &finding.found]);
    }
    let mut text = String::new();
    for line in lines(&mut table).lines() {
        // Colours would spoil the table's arithmetic, so they come last.
        let line = line
            .replacen(" warning ", &format!(" {} ", paint.doubtful("warning")), 1)
            .replacen(" missing ", &format!(" {} ", paint.bad("missing")), 1)
            .replacen(" ok ", &format!(" {} ", paint.good("ok")), 1);
        text.push_str(&line);
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text
}
