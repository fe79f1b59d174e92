use std::fs::File;
use std::io::PipeWriter;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use weft_agent::kernel::{Kernel, Options, cgroups};
use weft_model::compile::{LocalPod, Tables};
use weft_tests::{Cluster, Pod, PodSpec, Process};

use crate::fixture::{self, pod, tables};

/// The subject of every pod for what reaches it.
const SUBJECT: u32 = 40;

/// How long what is waited for may take before the wait is given up, on a busy machine, too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node with a client's and a server's pod, whose programs this process holds in the kernel.
pub struct Node {
    pub kernel: Kernel,
    pub client: Arc<Pod>,
    pub server: Arc<Pod>,
    pub pins: Pins,
    pub cluster: Cluster,
}

/// Removed before the cluster, whose cgroup the programs are attached to.
pub struct Pins(pub PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _unused = std::fs::remove_dir_all(&self.0);
    }
}

impl Node {
    pub const CLIENT: u32 = 7;
    pub const SERVER: u32 = 8;

    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// With other options.
    pub fn with(change: impl FnOnce(&mut Options)) -> Self {
        let cluster = Cluster::builder()
            .node("node-a")
            .pod(PodSpec::new("test", "client", "node-a"))
            .pod(PodSpec::new("test", "server", "node-a"))
            .build()
            .unwrap();
        let (client, server) =
            (cluster.pod("test/client").unwrap(), cluster.pod("test/server").unwrap());
        let pins = Pins(PathBuf::from("/sys/fs/bpf").join(cluster.name()).join("kernel"));
        // The driver's default; pods are one or two levels below.
        let root = cluster.node("node-a").unwrap().branch().join("kubepods.slice");
        let mut options = Options::new(&pins.0, &root);
        options.settings.connections_per_pod = 100_000;
        change(&mut options);
        let mut kernel = fixture::open(&options);
        for found in cgroups::find_pods(&root).unwrap() {
            let id = if *found.uid == *client.uid() { Self::CLIENT } else { Self::SERVER };
            kernel.bind_cgroup(found.id, id).unwrap();
        }
        assert_eq!(kernel.bound_cgroups().len(), 2);
        Self { kernel, client, server, pins, cluster }
    }

    /// A process of the client's that trades numbered words with a server until what it reads from,
    /// the pipe, is closed.
    pub fn trade(&self, to: SocketAddr) -> (Process, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        let run = self.client.tool("trade").unwrap().arg(to.to_string());
        let mut client = run.stdin(File::from(OwnedFd::from(reader))).spawn().unwrap();
        client.await_event(PATIENCE, "trading").unwrap();
        (client, writer)
    }

    /// Everyone may reach the pods, or nobody.
    pub fn tables(&self, allow: bool) -> Tables {
        let local = |id, one: &Pod| -> LocalPod {
            let mut local = pod(id, one.uid(), &one.addresses().ipv4.to_string(), SUBJECT);
            local.entry.v6 = IpAddr::from(one.addresses().ipv6).into();
            local
        };
        tables(
            vec![local(Self::CLIENT, &self.client), local(Self::SERVER, &self.server)],
            SUBJECT,
            allow,
        )
    }
}
