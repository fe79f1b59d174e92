//! Users and capabilities of the processes in pods.

use std::fs;
use std::path::Path;

use anyhow::Result;

/// By number (capabilities(7)).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Name, user and effective capabilities of Weft's processes below a cgroup.
pub fn of(cgroup: &Path) -> Result<Vec<(String, String, String)>> {
    let mut found = Vec::new();
    visit(cgroup, &mut found)?;
    found.sort();
    Ok(found)
}

fn visit(cgroup: &Path, found: &mut Vec<(String, String, String)>) -> Result<()> {
    for process in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        let directory = Path::new("/proc").join(process);
        // Processes end while one looks.
        let Ok(status) = fs::read_to_string(directory.join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
        };
        if !field("Name:").starts_with("weft") {
            continue;
        }
        // `weft agent`, `weft ca`: what it does is its first argument.
        let command = fs::read_to_string(directory.join("cmdline")).unwrap_or_default();
        let words = command.split('\0').take(2).filter(|word| !word.starts_with('-'));
        let name = words.collect::<Vec<_>>().join(" ").trim().to_owned();
        found.push((name, field("Uid:"), names(&field("CapEff:"))));
    }
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn names(hexadecimal: &str) -> String {
    let bits = u64::from_str_radix(hexadecimal, 16).unwrap_or_default();
    let held = NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    let held: Vec<_> = held.map(|(_, name)| *name).collect();
    if held.is_empty() { "no capabilities".into() } else { held.join(" ") }
}
