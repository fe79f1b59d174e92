//! `helm upgrade` and `helm rollback` under load.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::kubernetes::WEFT_NAMESPACE;
use weft_tests::{KubernetesCluster, Process, eventually_within};

use crate::held::Held;
use crate::install::{WITHIN, weft};

/// The value of the chart that says how many nodes' agents are replaced at once.
pub const NODES_AT_ONCE: &str = "agent.updateStrategy.rollingUpdate.maxUnavailable";
/// Connections that a client holds open.
const OPEN: usize = 8;
/// How long a client waits for a new connection.
const PATIENCE_MILLISECONDS: u64 = 60_000;

/// Traffic of one client to one server: new connections without end, and some that stay open.
struct Load {
    new: Process,
    open: Process,
}

/// What it has come to: new connections that were tried, and failed, and how long the longest took;
/// open ones that ended.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    tried: u64,
    failed: u64,
    longest: Duration,
    ended: usize,
}

impl Load {
    fn begin(cluster: &KubernetesCluster, client: &str, server: &str) -> Result<Self> {
        let inside = |script: String| -> Result<Process> {
            let words = ["exec", "-n", "shop", client, "--", "sh", "-c", &script];
            cluster.kubectl_command(words)?.spawn()
        };
        let watch =
            format!("pod-tool watch --echo --milliseconds {PATIENCE_MILLISECONDS} {server}");
        let mut new = inside(format!("exec {watch}"))?;
        new.await_line("\"connects\":true")?;
        let probe = format!("pod-tool probe --milliseconds 600000 {server}");
        let open = inside(format!("for i in $(busybox seq {OPEN}); do {probe} & done; wait"))?;
        eventually_within(WITHIN, "the connections that stay open", || {
            (events(&open, "established") == OPEN).then_some(())
        })
        .with_context(|| open.stdout())?;
        Ok(Self { new, open })
    }

    fn counts(&self) -> Result<Counts> {
        let last = self.new.json().pop().context("no attempts")?;
        let number = |field: &str| last[field].as_u64().context("a number");
        let (tried, failed) = (number("attempts")?, number("failures")?);
        let longest = Duration::from_micros(number("longest_micros")?);
        Ok(Counts { tried, failed, longest, ended: events(&self.open, "ended") })
    }

    /// Waits until a connection is tried that had not been begun yet, and for its count.
    fn settle(&self) -> Result<Counts> {
        let before = self.counts()?.tried;
        eventually_within(WITHIN, "further connections", || {
            let last = self.new.json().pop()?;
            (last["attempts"].as_u64()? > before && last["connects"] == true).then_some(())
        })?;
        self.counts()
    }
}

fn events(process: &Process, event: &str) -> usize {
    process.json().iter().filter(|line| line["event"] == event).count()
}

/// The agents are replaced, one after the other, and again by those of before, both at once; each
/// adopts what is pinned. Tunnels end with their proxy, and new ones wait for the next. `server` is an echo server on the node of the
/// client `friend`.
pub fn upgrade_and_roll_back(cluster: &KubernetesCluster, server: &str) -> Result<()> {
    let held = Held::by(cluster.nodes())?;
    let values = format!("log.level=debug,{NODES_AT_ONCE}=1");
    let upgrade = || weft(cluster, &["upgrade", "--set", &values, "--wait", "--timeout", "3m"]);
    let rollback = || {
        let words = ["rollback", "weft", "--namespace", WEFT_NAMESPACE, "--wait"];
        cluster.helm(words.iter().chain(&["--timeout=3m"]))
    };
    let replacements: [(&str, &dyn Fn() -> Result<String>); 2] =
        [("weft upgrade", &upgrade), ("helm rollback", &rollback)];
    let agents = || -> Result<String> {
        let uids = "--output=jsonpath={.items[*].metadata.uid}";
        let agents = "--selector=app.kubernetes.io/component=agent";
        cluster.kubectl(["get", "pods", "--namespace", WEFT_NAMESPACE, agents, uids])
    };
    for (name, replace) in replacements {
        let direct = Load::begin(cluster, "friend", server)?;
        let tunnels = Load::begin(cluster, "friend-far", server)?;
        let before = agents()?;
        replace().with_context(|| cluster.diagnose_weft())?;
        let after = agents()?;
        let stayed = before.split(' ').any(|uid| after.contains(uid));
        ensure!(!stayed, "{name} has not replaced every agent: {before}, {after}");
        let (near, far) = (direct.settle()?, tunnels.settle()?);
        for (path, counts) in [("direct", near), ("tunnels", far)] {
            println!(
                "{name}, {path}: of {} new connections {} failed, the longest took {:.1} s; of {OPEN} \
                 open ones {} ended",
                counts.tried,
                counts.failed,
                counts.longest.as_secs_f64(),
                counts.ended
            );
        }
        ensure!(near.failed == 0, "{name}: {}", direct.new.stdout());
        ensure!(near.ended == 0, "{name}: {}", direct.open.stdout());
        // What is begun while a proxy is away waits for the next. On a slow machine that may be more
        // than once too long, but nothing is refused at once, again and again.
        ensure!(far.failed <= far.tried / 20, "{name}: {}", tunnels.new.stdout());
        let maps = Held::by(cluster.nodes())?.maps;
        ensure!(maps == held.maps, "{name}: maps were {:?}, and are {maps:?}", held.maps);
        // What runs in a pod outlives the kubectl that began it.
        for client in ["friend", "friend-far"] {
            let stop = ["exec", "-n", "shop", client, "--", "busybox", "killall", "pod-tool"];
            cluster.kubectl(stop)?;
        }
    }
    Ok(())
}
