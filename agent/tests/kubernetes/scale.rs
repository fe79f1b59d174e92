//! What many objects cost, with figures to be read. Nothing here asserts a time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::Load;
use crate::server::Server;

const DEADLINE: Duration = Duration::from_secs(240);
const CHANGES: usize = 200;

/// An agent of a node whose pods have no processes.
struct Agent {
    child: Child,
    applied: Receiver<(Instant, Value)>,
    pins: PathBuf,
    cgroup: PathBuf,
    _run: tempfile::TempDir,
}

impl Agent {
    fn start(kubeconfig: &Path) -> Self {
        let run = tempfile::tempdir().unwrap();
        let unique = format!("weft-scale-{}", std::process::id());
        let pins = Path::new("/sys/fs/bpf").join(&unique);
        let hierarchy = weft_agent::kernel::cgroups::find_hierarchy().unwrap();
        let cgroup = hierarchy.join(&unique);
        fs::create_dir_all(cgroup.join("kubepods")).unwrap();
        let program = match std::env::var_os("WEFT_BIN_DIR") {
            Some(directory) => Path::new(&directory).join("weft"),
            None => env!("CARGO_BIN_EXE_weft").into(),
        };
        let mut child = Command::new(program)
            .args(["agent", "--node", "node-0", "--log-format", "json", "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--run-dir")
            .arg(run.path().join("run"))
            .arg("--ca-dir")
            .arg(run.path().join("ca"))
            .arg("--pin-dir")
            .arg(&pins)
            .arg("--pods-cgroup")
            .arg(cgroup.join("kubepods"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, applied) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let value = serde_json::from_str::<Value>(&line).ok();
                if let Some(value) = value.filter(|_| line.contains("\"applied\"")) {
                    if sender.send((Instant::now(), value)).is_err() {
                        return;
                    }
                } else if line.contains("ERROR") {
                    eprintln!("{line}");
                }
            }
        });
        Self { child, applied, pins, cgroup, _run: run }
    }

    fn applied(&self) -> (Instant, Value) {
        self.applied.recv_timeout(DEADLINE).expect("a policy in force")
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap()
    }

    /// CPU time since its start, in clock ticks (a hundredth of a second each).
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        if let Err(error) = weft_agent::kernel::Kernel::remove(&self.pins) {
            eprintln!("{}: {error}", self.pins.display());
        }
        drop(fs::remove_dir(self.cgroup.join("kubepods")));
        drop(fs::remove_dir(&self.cgroup));
    }
}

async fn measure(load: Load) {
    let server = Server::start().await;
    let started = Instant::now();
    for objects in load.objects() {
        server.create_all(objects).await;
    }
    println!("{load:?}: made in {:.1} s", started.elapsed().as_secs_f64());

    let started = Instant::now();
    let agent = Agent::start(server.kubeconfig());
    let (first, line) = agent.applied();
    println!(
        "from start to the first policy in force: {:.2} s; {}",
        (first - started).as_secs_f64(),
        line["fields"]
    );
    // Until nothing more comes of the start.
    while agent.applied.recv_timeout(Duration::from_secs(5)).is_ok() {}
    println!("resident: {} MiB", agent.status("VmRSS") / 1024);
    let (before, since) = (agent.ticks(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let ticks = agent.ticks() - before;
    println!("CPU at rest: {:.2} %", ticks as f64 / since.elapsed().as_secs_f64());

    let mut took = Vec::new();
    for change in 0..CHANGES {
        // Policies of pods on the node: the first of each namespace's apps are.
        let policy = load.policy(change % load.namespaces, 9000 + change as u16);
        let sent = Instant::now();
        server.change(&policy).await;
        let (applied, line) = agent.applied();
        took.push((applied.duration_since(sent), line));
    }
    took.sort_by_key(|(took, _)| *took);
    for (name, index) in [("p50", CHANGES / 2), ("p99", CHANGES * 99 / 100), ("worst", CHANGES - 1)]
    {
        let (took, line) = &took[index];
        println!("from the change of a policy to its effect, {name}: {took:?}; {}", line["fields"]);
    }
    println!(
        "resident: {} MiB, at most {} MiB",
        agent.status("VmRSS") / 1024,
        agent.status("VmHWM") / 1024
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; prints figures"]
async fn ten_thousand_pods_and_a_thousand_policies() {
    measure(Load { namespaces: 100, pods: 10_000, services: 1_000, policies: 1_000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; prints figures"]
async fn fifty_thousand_pods_and_five_thousand_services() {
    measure(Load { namespaces: 100, pods: 50_000, services: 5_000, policies: 100 }).await;
}
