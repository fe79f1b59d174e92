//! Weft as a user installs it: the chart, the commands, what the containers may do, and that nothing
//! stays when it goes. On a cluster of its own, without kube-proxy, for Weft is the whole cluster's;
//! one of its nodes has the kubelet's driver `systemd`, and the other `cgroupfs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use weft_tests::kubernetes::{WEFT_NAMESPACE, WORKLOAD_IMAGE, kubernetes_program};
use weft_tests::{Cni, KubernetesCluster, KubernetesOptions, Process, binary, eventually_within};

use crate::held::{Held, PINS};
use crate::shared::{Shared, failed, import_weft};
use crate::{nodes, reboot, upgrade};

/// Numbers of BPF, PERFMON, NET_ADMIN, SYS_ADMIN, SYS_PTRACE and CHOWN (capability.h).
const AGENT_CAPABILITIES: u64 = 1 << 39 | 1 << 38 | 1 << 12 | 1 << 21 | 1 << 19 | 1;
const PROXY_USER: &str = "65532";
pub const WITHIN: Duration = Duration::from_secs(120);

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let mut trials = shared.trials([("every_template_is_accepted_by_the_api_server", templates)]);
    trials.push(Trial::test("weft_installs_endures_and_leaves_nothing", || life().map_err(failed)));
    trials
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft")
}

/// What `weft` said on standard output; the error is what it said otherwise.
pub fn weft(cluster: &KubernetesCluster, words: &[&str]) -> Result<String> {
    let helm = kubernetes_program("helm")?;
    let path = std::env::join_paths(helm.parent().map(Path::to_owned))?;
    let output = Command::new(binary("weft")?)
        .args(words)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .env("PATH", path)
        .env("HOME", cluster.directory())
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weft {}: {stdout}{stderr}", words.join(" "));
    Ok(stdout)
}

/// `helm lint`, and a dry run of every template with every switch of the values on and off.
fn templates(cluster: &KubernetesCluster) -> Result<()> {
    let chart = chart();
    let chart = chart.to_str().context("the chart's path is no text")?;
    cluster.helm(["lint", "--strict", chart])?;
    let namespace = "templates";
    cluster.create_namespace(namespace, &[])?;
    let everything = [
        "--set=agent.mountBpfFileSystem=true,agent.bpfLog=true,agent.mapSizes.CONNECTIONS=500000",
        "--set=agent.podsCgroup=/sys/fs/cgroup/kubepods,agent.extraArgs={--flows-per-pod=1}",
        "--set=agent.cniConfig=/etc/cni/net.d",
        "--set=priorityClass.create=true,compat.crds=true,proxy.threads=2",
        "--set=image.pullSecrets={registry},image.pullPolicy=Never",
        "--set=apiServer.host=10.0.0.1,ca.address=https://10.0.0.2:15012",
    ];
    let nothing = [
        "--set=agent.seLinuxOptions=null,ca.replicas=1,ca.networkPolicy.enabled=false",
        "--set=ca.podDisruptionBudget.enabled=false",
    ];
    for switches in [&[][..], &everything[..], &nothing[..]] {
        let words = ["template", "weft", chart, "--namespace", namespace, "--include-crds"];
        let manifests = cluster.helm(words.iter().chain(switches))?;
        let path = cluster.directory().join("manifests.yaml");
        fs::write(&path, manifests)?;
        let path = path.to_str().context("a path is no text")?;
        let applied = cluster.kubectl(["apply", "--dry-run=server", "-f", path])?;
        ensure!(applied.contains("daemonset.apps/weft-agent"), "{applied}");
    }
    let words = ["template", "weft", chart, "--set=agent.capabilites={BPF}"];
    let refused = cluster.helm(words).err().context("a value that does not exist was taken")?;
    ensure!(format!("{refused:#}").contains("capabilites"), "{refused:#}");
    Ok(())
}

fn life() -> Result<()> {
    let options = KubernetesOptions::default().cni(Cni::Bridge).without_kube_proxy();
    let options = options.systemd_on(["node-b"]);
    let cluster = KubernetesCluster::start(&options)?;
    import_weft(&cluster)?;
    before(&cluster)?;
    install(&cluster)?;
    privileges(&cluster)?;
    nodes::cgroups(&cluster, "node-b")?;
    enrol(&cluster)?;
    endure(&cluster)?;
    report(&cluster)?;
    reboot::reboot(&cluster)?;

    let held = Held::by(cluster.nodes())?;
    println!("{}", weft(&cluster, &["uninstall", "--yes"])?);
    nothing_is_left(&cluster, &held)
}

fn before(cluster: &KubernetesCluster) -> Result<()> {
    let found = weft(cluster, &["check", "--pre", "-o", "json"])?;
    let found: Vec<Value> = serde_json::from_str(&found)?;
    ensure!(found.iter().all(|finding| finding["ok"] != "missing"), "{found:#?}");
    for node in cluster.nodes() {
        let looked = found.iter().filter(|one| one["node"] == node.name() && one["check"] == "BTF");
        ensure!(looked.count() == 1, "{} was not looked at: {found:#?}", node.name());
    }
    Ok(())
}

fn install(cluster: &KubernetesCluster) -> Result<()> {
    let (host, port) = cluster.api_server();
    let values = format!("apiServer.host={host},apiServer.port={port}");
    let values = format!("{values},agent.cniConfig={}", reboot::NETWORK_CONFIG);
    let values = format!("{values},{}=2", upgrade::NODES_AT_ONCE);
    weft(cluster, &["install", "--wait", "--timeout", "3m", "--set", &values])
        .with_context(|| cluster.diagnose_weft())?;
    // The certificates' authority answers after the agents are ready.
    eventually_within(WITHIN, "all to be well", || weft(cluster, &["check"]).ok())
        .with_context(|| format!("{:?}", weft(cluster, &["check"])))?;
    println!("{}", weft(cluster, &["status"])?);
    Ok(())
}

fn enrol(cluster: &KubernetesCluster) -> Result<()> {
    cluster.create_namespace("shop", &[])?;
    cluster.apply(&SHOP.replace("IMAGE", WORKLOAD_IMAGE))?;
    cluster.await_pods("shop", WITHIN)?;
    let restarted = restarts(cluster)?;
    let enrolled = weft(cluster, &["enroll", "shop", "-o", "json"])?;
    let enrolled: Vec<Value> = serde_json::from_str(&enrolled)?;
    ensure!(!enrolled.is_empty() && enrolled.iter().all(|pod| pod["in_mesh"] == true));
    ensure!(restarts(cluster)? == restarted, "enrolling has restarted something");
    let refused = weft(cluster, &["enroll", "kube-system"]);
    ensure!(refused.is_err(), "kube-system was enrolled");

    // Nothing but the mesh serves the service's address.
    let address = cluster.get("service", "shop", "web")?["spec"]["clusterIP"].clone();
    let url = format!("http://{}/", address.as_str().context("the service has no address")?);
    for client in ["friend", "near", "friend-far"] {
        let answer = eventually_within(WITHIN, "the service to answer", || {
            let words = ["exec", "-n", "shop", client, "--", "curl", "-sS", "-m3", &url];
            cluster.kubectl(words).ok()
        })?;
        ensure!(answer == "hello from shop/web\n", "{client}: {answer:?}");
    }
    cluster.apply(ONLY_FRIENDS)?;
    eventually_within(WITHIN, "the policy to be in force", || {
        let words = ["exec", "-n", "shop", "near", "--", "curl", "-sS", "-m3", &url];
        cluster.kubectl(words).is_err().then_some(())
    })
}

/// Restarts a node's containerd and kubelet, then replaces the agents, while friends talk and
/// others try.
fn endure(cluster: &KubernetesCluster) -> Result<()> {
    let web = cluster.get("pod", "shop", "web")?["status"]["podIP"].clone();
    let web = web.as_str().context("the pod has no address")?;
    let asks = |script: String| -> Result<Process> {
        let words = ["exec", "-n", "shop", "watcher", "--", "sh", "-c", &script];
        cluster.kubectl_command(words)?.spawn()
    };
    let inside = |pod: &str, script: &str| {
        cluster.kubectl(["exec", "-n", "shop", pod, "--", "sh", "-c", script])
    };
    let friends = ["friend", "friend-far"];
    for friend in friends {
        let talk = format!(
            "mkfifo /tmp/in; sleep infinity > /tmp/in & nc {web} 9000 < /tmp/in > /tmp/out &"
        );
        inside(friend, &format!("{{ {talk} }} > /dev/null 2>&1"))?;
    }
    let say = |friend: &str, word: &str| -> Result<()> {
        eventually_within(WITHIN, &format!("{friend} to say {word:?}"), || {
            inside(friend, &format!("timeout 5 sh -c 'echo {word} > /tmp/in'")).ok()
        })?;
        eventually_within(WITHIN, &format!("the echo of {word:?} at {friend}"), || {
            inside(friend, &format!("grep {word} /tmp/out")).ok().map(drop)
        })
    };
    for friend in friends {
        say(friend, "before")?;
    }
    // Who watches is on the other node: `kubectl exec` goes by the kubelet.
    let mut denied = asks(format!(
        "echo tries; while :; do curl -s -m 1 http://{web}:8080/ && echo answered; done"
    ))?;
    denied.await_line("tries")?;

    let node = cluster.node("node-a")?;
    node.stop_kubelet();
    node.stop_containerd();
    say("friend-far", "without-kubelet")?;
    node.start_containerd()?;
    node.start_kubelet()?;
    cluster.apply(&LATE.replace("IMAGE", WORKLOAD_IMAGE))?;
    cluster.await_pods("shop", WITHIN)?;
    let late = ["exec", "-n", "shop", "late", "--", "curl", "-sS", "-m3"];
    let url = format!("http://{web}:8080/");
    ensure!(cluster.kubectl(late.iter().chain(&[&*url])).is_err(), "the late pod was answered");
    for friend in friends {
        say(friend, "with-a-new-kubelet")?;
    }

    upgrade::upgrade_and_roll_back(cluster, &format!("{web}:9000"))?;
    say("friend", "after-the-upgrade")?;
    let ask = format!("curl -sS -m3 {url}");
    for friend in friends {
        let answer =
            eventually_within(WITHIN, "a friend to be answered", || inside(friend, &ask).ok())?;
        ensure!(answer == "hello from shop/web\n", "{friend}: {answer:?}");
    }
    // What is accelerated holds its program until it is closed.
    for friend in friends {
        inside(friend, "busybox killall nc sleep pod-tool; true")?;
    }
    ensure!(denied.is_running(), "who tries has ended: {}", denied.stderr());
    let said = denied.stdout();
    ensure!(!said.contains("answered"), "who is denied was answered meanwhile: {said}");
    Ok(())
}

fn report(cluster: &KubernetesCluster) -> Result<()> {
    let report = cluster.directory().join("report.tar.gz");
    weft(cluster, &["bug-report", "--file", report.to_str().context("a path is no text")?])?;
    let listed = Command::new("tar").arg("tzf").arg(&report).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    for part in ["versions.json", "agents/node-a/status.json", "logs/weft-ca"] {
        ensure!(listed.contains(part), "the report has no {part}: {listed}");
    }
    Ok(())
}

/// Of all containers in the shop.
fn restarts(cluster: &KubernetesCluster) -> Result<String> {
    let path = "-o=jsonpath={.items[*].status.containerStatuses[*].containerID}";
    cluster.kubectl(["get", "pods", "-n", "shop", path])
}

/// A server on one node, and who asks: friends are who policy lets in.
const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec: { selector: { app: web }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers:
  - { name: http, image: IMAGE, command: [serve, '8080'] }
  - { name: echo, image: IMAGE, command: [pod-tool, serve, --tcp, '9000', --quiet] }
---
apiVersion: v1
kind: Pod
metadata: { name: friend, namespace: shop, labels: { friend: 'yes' } }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]
---
apiVersion: v1
kind: Pod
metadata: { name: near, namespace: shop }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]
---
apiVersion: v1
kind: Pod
metadata: { name: friend-far, namespace: shop, labels: { friend: 'yes' } }
spec:
  nodeName: node-b
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]
---
apiVersion: v1
kind: Pod
metadata: { name: watcher, namespace: shop }
spec:
  nodeName: node-b
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]
";

const LATE: &str = "
apiVersion: v1
kind: Pod
metadata: { name: late, namespace: shop }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]
";

const ONLY_FRIENDS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: friends, namespace: shop }
spec:
  podSelector: { matchLabels: { app: web } }
  ingress: [{ from: [{ podSelector: { matchLabels: { friend: 'yes' } } }] }]
";

/// The effective capabilities of both containers, as `/proc` shows them.
fn privileges(cluster: &KubernetesCluster) -> Result<()> {
    let pods = cluster.kubectl([
        "get",
        "pods",
        "--namespace",
        WEFT_NAMESPACE,
        "--selector=app.kubernetes.io/component=agent",
        "-o",
        "json",
    ])?;
    let pods: Value = serde_json::from_str(&pods)?;
    let pods = pods["items"].as_array().context("pods")?;
    ensure!(pods.len() == 2, "{} agents", pods.len());
    for pod in pods {
        let node = pod["spec"]["nodeName"].as_str().context("nodeName")?;
        let uid = pod["metadata"]["uid"].as_str().context("uid")?;
        for (program, capabilities, user) in
            [("weft", AGENT_CAPABILITIES, "0"), ("weft-proxy", 0, PROXY_USER)]
        {
            let status = process_of(uid, program)?;
            let field = |name: &str| -> Result<String> {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                let value = line.and_then(|line| line.split_whitespace().next());
                Ok(value.with_context(|| name.to_owned())?.to_owned())
            };
            let effective = field("CapEff:")?;
            println!("{node}: {program} has CapEff {effective}");
            ensure!(u64::from_str_radix(&effective, 16)? == capabilities, "{status}");
            ensure!(u64::from_str_radix(&field("CapBnd:")?, 16)? == capabilities, "{status}");
            ensure!(field("Uid:")? == user, "{status}");
            ensure!(field("NoNewPrivs:")? == "1", "{status}");
            // A filter is in force.
            ensure!(field("Seccomp:")? == "2", "{status}");
        }
    }
    Ok(())
}

/// `/proc/PID/status` of the process in a pod that runs a program.
fn process_of(pod: &str, program: &str) -> Result<String> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let cgroup = fs::read_to_string(path.join("cgroup")).unwrap_or_default();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        // systemd's names have no dash within a uid.
        if cgroup.replace('_', "-").contains(pod) && name.trim() == program {
            return Ok(fs::read_to_string(path.join("status"))?);
        }
    }
    bail!("no process {program} in pod {pod}")
}

fn nothing_is_left(cluster: &KubernetesCluster, held: &Held) -> Result<()> {
    for node in cluster.nodes() {
        let pins = node.root()?.join(PINS);
        ensure!(!pins.exists(), "{} is there", pins.display());
    }
    let left = held.left()?;
    ensure!(left.is_empty(), "there is left: {left:?}");
    println!("gone: {} programs, {} maps", held.programs.len(), held.maps.len());

    let crds = cluster.kubectl(["get", "crd", "-o", "name"])?;
    ensure!(!crds.contains(".weft.dev"), "{crds}");
    let labelled =
        cluster.kubectl(["get", "ns,pods", "-A", "-l", "weft.dev/mesh", "-o", "name"])?;
    ensure!(labelled.is_empty(), "{labelled}");
    let of_the_cluster = ["get", "clusterroles,clusterrolebindings", "-o", "name"];
    let roles = cluster.kubectl(of_the_cluster)?;
    ensure!(!roles.contains("/weft"), "{roles}");
    eventually_within(WITHIN, "the namespace to be gone", || {
        let namespaces = cluster.kubectl(["get", "namespaces", "-o", "name"]).ok()?;
        (!namespaces.contains(WEFT_NAMESPACE)).then_some(())
    })?;
    let kinds = "secrets,configmaps,leases,daemonsets,deployments,services,serviceaccounts,roles,\
                 rolebindings,networkpolicies,poddisruptionbudgets,priorityclasses";
    let all = cluster.kubectl(["get", kinds, "-A", "-o", "name"])?;
    ensure!(!all.contains("weft"), "{all}");
    Ok(())
}
