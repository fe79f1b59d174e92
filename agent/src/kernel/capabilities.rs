//! What the agent may do, as the kernel knows it, and what it needs it for.

use std::fs;
use std::io;

/// A capability of Linux that the agent has a use for (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, as a container's `securityContext` has it.
    pub name: &'static str,
    number: u8,
    /// Whether nothing works without it.
    pub required: bool,
    /// What it is needed for.
    pub reason: &'static str,
}

/// All that the agent has a use for.
pub const CAPABILITIES: [Capability; 6] = [
    Capability {
        name: "BPF",
        number: 39,
        required: true,
        reason: "loading the eBPF programs and making their maps",
    },
    Capability {
        name: "PERFMON",
        number: 38,
        required: true,
        reason: "programs that read sockets' queues in the kernel's memory",
    },
    Capability {
        name: "NET_ADMIN",
        number: 12,
        required: true,
        reason: "attaching programs to cgroups, maps of sockets and interfaces; closing sockets",
    },
    Capability {
        name: "CHOWN",
        number: 0,
        required: false,
        reason: "giving the proxy's user the socket that it reads its configuration from",
    },
    Capability {
        name: "SYS_ADMIN",
        number: 21,
        required: false,
        reason: "entering pods' network namespaces: to wake readers of accelerated sockets \
                 (without it acceleration is off), to close forbidden connections at once, and to \
                 find the interfaces at which frames are checked",
    },
    Capability {
        name: "SYS_PTRACE",
        number: 19,
        required: false,
        reason: "opening the network namespaces of other users' processes, for the same",
    },
];

/// Those of [`CAPABILITIES`] that this process lacks.
///
/// # Errors
/// If the kernel does not say.
pub fn lacking() -> io::Result<Vec<Capability>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = effective(&status)
        .ok_or_else(|| io::Error::other("/proc/self/status names no effective capabilities"))?;
    Ok(CAPABILITIES.into_iter().filter(|one| effective >> one.number & 1 == 0).collect())
}

/// The effective set in a process's status (proc_pid_status(5)).
fn effective(status: &str) -> Option<u64> {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Says what does not work for want of a capability. Returns why pods' network namespaces cannot
/// be entered, if they cannot.
pub(super) fn report() -> Option<String> {
    let lacking = match lacking() {
        Ok(lacking) => lacking,
        Err(error) => {
            tracing::warn!(%error, "capabilities");
            return None;
        }
    };
    for Capability { name, required, reason, .. } in &lacking {
        if *required {
            tracing::error!("CAP_{name} is missing: {reason}");
        } else {
            tracing::warn!("CAP_{name} is missing: {reason}");
        }
    }
    let enters = |one: &&Capability| matches!(one.name, "SYS_ADMIN" | "SYS_PTRACE");
    let first = lacking.iter().find(enters)?;
    Some(format!("CAP_{} is missing: pods' network namespaces cannot be entered", first.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_set() {
        let status = "Name:\tweft\nCapPrm:\t0000000000000000\nCapEff:\t000000c000001000\n";
        assert_eq!(effective(status), Some(1 << 39 | 1 << 38 | 1 << 12));
        assert_eq!(effective("Name:\tweft\n"), None);
    }
}
