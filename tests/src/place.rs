use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::address::{NodeAddresses, PodAddresses};
use crate::enter::Privilege;
use crate::mesh::binary;
use crate::namespace::NetworkNamespace;
use crate::process::{Output, Process, Run};
use crate::wait::eventually;

/// Where processes run: a network namespace and a cgroup. Pods and nodes are places.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    namespace: NetworkNamespace,
    cgroup: PathBuf,
    logs: PathBuf,
    container: bool,
}

impl Place {
    pub(crate) fn new(
        name: impl Into<String>,
        namespace: NetworkNamespace,
        cgroup: PathBuf,
        logs: PathBuf,
    ) -> Self {
        Self { name: name.into(), namespace, cgroup, logs, container: false }
    }

    /// Its processes get what a container runtime grants by default.
    pub(crate) fn contained(self) -> Self {
        Self { container: true, ..self }
    }

    pub(crate) fn privilege(&self) -> Privilege {
        if self.container { Privilege::Container } else { Privilege::Root }
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// The cgroup in which its processes start.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where the output of its processes is kept.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// A program that is to run here.
    pub fn run(&self, program: impl AsRef<OsStr>) -> Run<'_> {
        Run::new(self, program)
    }

    /// The test program `pod-tool`, in one of its roles; see `pod-tool --help`.
    pub fn tool(&self, role: &str) -> Result<Run<'_>> {
        Ok(self.run(binary("pod-tool")?).arg(role))
    }

    /// Runs a program (its name, then its arguments) to its end.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        self.split(words)?.output()
    }

    /// Starts a program (its name, then its arguments).
    pub fn spawn<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Process> {
        self.split(words)?.spawn()
    }

    fn split<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Run<'_>> {
        let mut words = words.into_iter();
        let program = words.next().context("a program to run has a name")?;
        Ok(self.run(program).args(words))
    }

    /// Waits until a TCP socket listens on the port, over either family.
    pub fn await_listening(&self, port: u16) -> Result<()> {
        self.namespace.enter(|| {
            let what = format!("{} to listen on port {port}", self.name);
            eventually(&what, || listens(port).then_some(()))
        })?
    }
}

/// Whether something in the calling thread's network namespace listens on the port.
fn listens(port: u16) -> bool {
    ["tcp", "tcp6"].iter().any(|table| {
        let table = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        table.unwrap_or_default().lines().any(|line| is_listener(line, port))
    })
}

/// Reads a line of `/proc/net/tcp`: local address and port in hexadecimal are the second field,
/// the state the fourth.
fn is_listener(line: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|local| local.rsplit_once(':'));
    let local_port = local.and_then(|(_, digits)| u16::from_str_radix(digits, 16).ok());
    local_port == Some(port) && fields.nth(1) == Some(LISTEN)
}

/// A node, or a host outside of the cluster. Its processes run as root, outside of the pods.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) record: HostRecord,
    pub(crate) branch: PathBuf,
    pub(crate) place: Place,
}

/// What is written down of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) name: String,
    pub(crate) addresses: NodeAddresses,
    pub(crate) outside: bool,
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its addresses on the network between the nodes.
    pub fn addresses(&self) -> NodeAddresses {
        self.record.addresses
    }

    /// Addresses of a host outside, beyond the network of the nodes.
    pub fn public_addresses(&self) -> PodAddresses {
        self.record.addresses.public()
    }

    /// Its branch of the cgroups.
    pub fn branch(&self) -> &Path {
        &self.branch
    }
}

impl std::ops::Deref for Host {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

#[cfg(test)]
mod tests {
    use super::is_listener;

    #[test]
    fn reads_the_table_of_sockets() {
        let line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000";
        assert!(is_listener(line, 8080));
        assert!(!is_listener(line, 8081));
        assert!(!is_listener(&line.replace(" 0A ", " 01 "), 8080));
        assert!(!is_listener("  sl  local_address rem_address   st", 8080));
    }
}
