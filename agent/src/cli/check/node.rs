//! This machine: its kernel, mounts and cgroups, and who else is on the hooks.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::kernel::{CAPABILITIES, Capability, cgroups, lacking_capabilities};

pub(super) fn check(pods_cgroup: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![kernel_version(), btf(), capabilities(), bpf_file_system(in_a_pod())];
    let hierarchy = cgroups::find_hierarchy();
    findings.push(match &hierarchy {
        Ok(path) => Finding::ok("cgroup v2", path.display().to_string()),
        Err(error) => Finding::missing(
            "cgroup v2",
            error.to_string(),
            "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup",
        ),
    });
    let pods = pods_cgroup
        .map(|path| Ok(path.to_owned()))
        .or_else(|| hierarchy.ok().map(|_| cgroups::find_pods_root()));
    const PODS: &str = "pods' cgroups";
    let remedy = "say where the pods' cgroups are: --pods-cgroup, agent.podsCgroup in the chart";
    match pods {
        Some(Ok(pods)) if pods.is_dir() => {
            let count = cgroups::find_pods(&pods).map(|pods| pods.len()).unwrap_or_default();
            findings.push(Finding::ok(PODS, format!("{} ({count} pods)", pods.display())));
            findings.extend(hooks(&pods));
        }
        Some(Ok(pods)) => findings.push(Finding::missing(
            PODS,
            format!("{} is no directory", pods.display()),
            remedy,
        )),
        Some(Err(error)) => findings.push(Finding::missing(PODS, error.to_string(), remedy)),
        None => {}
    }
    if in_a_pod() {
        findings.push(process_namespace());
    }
    findings
}

/// What the kubelet puts into every container.
fn in_a_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// In the host's pid namespace the first process is the host's, whose cgroup is not below ours.
fn process_namespace() -> Finding {
    const CHECK: &str = "host's processes";
    let kernel_threads = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if kernel_threads.trim() == "kthreadd" || first.trim() == "systemd" || first.trim() == "init" {
        return Finding::ok(CHECK, "seen (hostPID)");
    }
    Finding::warning(
        CHECK,
        format!("process 1 is {:?}: this may not be the host's pid namespace", first.trim()),
        "the agent's pod needs hostPID: true",
    )
}

/// Judged by its release, `6.12.1-cloud`.
pub(super) fn kernel(release: &str) -> Finding {
    const CHECK: &str = "kernel";
    const NEWER: &str = "take Linux 6.1 or later (6.6 or later for all that Weft checks)";
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 6) => {
            Finding::ok(CHECK, release)
        }
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 1) => Finding::warning(
            CHECK,
            format!("{release}: no tcx before 6.6, so frames sent by AF_PACKET are not checked"),
            "drop NET_RAW from pods' capabilities, or take Linux 6.6 or later",
        ),
        (Some(Ok(_)), Some(Ok(_))) => {
            Finding::missing(CHECK, format!("{release}: Weft is tested from Linux 6.1 on"), NEWER)
        }
        _ => Finding::warning(CHECK, format!("{release:?} has no version in it"), NEWER),
    }
}

fn kernel_version() -> Finding {
    kernel(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim())
}

fn btf() -> Finding {
    const CHECK: &str = "BTF";
    let path = Path::new("/sys/kernel/btf/vmlinux");
    if path.exists() {
        return Finding::ok(CHECK, path.display().to_string());
    }
    Finding::missing(
        CHECK,
        format!("{} is not there", path.display()),
        "take a kernel with CONFIG_DEBUG_INFO_BTF (every current distribution's has it)",
    )
}

fn capabilities() -> Finding {
    match lacking_capabilities() {
        Ok(lacking) => judge_capabilities(&lacking),
        Err(error) => Finding::warning(CAPABILITIES_CHECK, error.to_string(), "mount /proc"),
    }
}

const CAPABILITIES_CHECK: &str = "capabilities";

pub(super) fn judge_capabilities(lacking: &[Capability]) -> Finding {
    const REMEDY: &str = "run as root, or with the capabilities of agent.capabilities in the chart";
    let names = |all: &[Capability]| {
        let names: Vec<&str> = all.iter().map(|one| one.name).collect();
        names.join(", ")
    };
    if lacking.is_empty() {
        return Finding::ok(CAPABILITIES_CHECK, names(&CAPABILITIES));
    }
    let needed_for: Vec<String> =
        lacking.iter().map(|one| format!("{} ({})", one.name, one.reason)).collect();
    let found = format!("missing: {}", needed_for.join("; "));
    if lacking.iter().any(|one| one.required) {
        Finding::missing(CAPABILITIES_CHECK, found, REMEDY)
    } else {
        Finding::warning(CAPABILITIES_CHECK, found, REMEDY)
    }
}

fn bpf_file_system(in_a_pod: bool) -> Finding {
    const CHECK: &str = "BPF file system";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| path.to_owned())
    });
    match mounted {
        Some(path) => Finding::ok(CHECK, path),
        // What a container mounts goes with it, and the pins with that.
        None if in_a_pod => Finding::missing(
            CHECK,
            "not mounted on the node",
            "on the node: mount -t bpf bpf /sys/fs/bpf (systemd does it at boot); or install with \
             --set agent.mountBpfFileSystem=true",
        ),
        None => Finding::warning(CHECK, "not mounted", "nothing: the agent mounts it"),
    }
}

/// Who else has programs where ours are attached.
fn hooks(pods: &Path) -> Vec<Finding> {
    const CHECK: &str = "hooks";
    match crate::kernel::programs_on_hooks(pods) {
        Ok(found) if found.is_empty() => {
            vec![Finding::ok(CHECK, "nobody else is on them")]
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
                    Finding::warning(
                        CHECK,
                        format!("{text} runs beside Weft's"),
                        "nothing, if it only looks; what changes addresses in connect() (a CNI's \
                         socket load balancer) should leave the mesh's pods alone",
                    )
                }
            })
            .collect(),
        Err(error) => vec![Finding::warning(
            CHECK,
            error.to_string(),
            "run as root: to list programs takes CAP_SYS_ADMIN",
        )],
    }
}
