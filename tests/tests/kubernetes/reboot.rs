//! A node that loses its power and comes back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::kubernetes::WORKLOAD_IMAGE;
use weft_tests::{KubernetesCluster, eventually_within};

use crate::held::Held;
use crate::install::WITHIN;

/// Where the nodes' CNI has its configuration, and where the agent puts it.
pub const NETWORK_CONFIG: &str = "/var/lib/cni/net.d";
const KEPT_BACK: &str = "/run/weft/cni";
/// Pods on the node, whose containers try from their first moment on: `prisoner` may reach nobody,
/// `intruder` is none of `web`'s friends. `beyond` is not in the mesh.
const TRYING: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: prisoner, namespace: shop }
spec: { podSelector: { matchLabels: { app: prisoner } }, policyTypes: [Egress] }
---
apiVersion: v1
kind: Pod
metadata: { name: prisoner, namespace: shop, labels: { app: prisoner } }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers:
  - { name: main, image: IMAGE, command: [sh, -c, 'while :; do echo tries; curl -s -m 1 http://BEYOND:8080/; done'] }
---
apiVersion: v1
kind: Pod
metadata: { name: intruder, namespace: shop }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers:
  - { name: main, image: IMAGE, command: [sh, -c, 'while :; do echo tries; curl -s -Z -m 1 http://ANYBODY:8080/; done'] }
";
const BEYOND: &str = "
apiVersion: v1
kind: Pod
metadata: { name: server, namespace: beyond }
spec:
  nodeName: node-b
  terminationGracePeriodSeconds: 1
  containers: [{ name: main, image: IMAGE, command: [serve, '8080'] }]
";

/// With the namespace `shop`, in which friends alone may reach `web` on `node-a`.
pub fn reboot(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "shop";
    let at = ["--namespace", namespace];
    cluster.create_namespace("beyond", &[])?;
    cluster.apply(&BEYOND.replace("IMAGE", WORKLOAD_IMAGE))?;
    cluster.await_pods("beyond", WITHIN)?;
    let beyond = cluster.get("pod", "beyond", "server")?["status"]["podIP"].clone();
    let beyond = beyond.as_str().context("no address")?;
    let node = cluster.node("node-a")?;
    // Pods get other addresses; these are all that they may get.
    let [range, _] = node.host().addresses().pod_cidrs();
    let (range, _) = range.rsplit_once('.').context("a range of addresses")?;
    let anybody = format!("{range}.[2-60]");
    let trying = TRYING.replace("BEYOND", beyond).replace("ANYBODY", &format!("\"{anybody}\""));
    cluster.apply(&trying.replace("IMAGE", WORKLOAD_IMAGE))?;
    cluster.await_pods(namespace, WITHIN)?;
    let before = pods_of(cluster, namespace, node.name())?;

    let words = ["exec", "watcher", "--", "sh", "-c"];
    let sweep = format!("echo tries; while :; do curl -s -Z -m 1 'http://{anybody}:8080/'; done");
    let mut watcher =
        cluster.kubectl_command(at.iter().chain(&words).chain(&[&*sweep]))?.spawn()?;
    watcher.await_line("tries")?;

    let held = Held::by([node])?;
    node.power_off()?;
    eventually_within(WITHIN, "the kernel to have nothing of the node", || {
        held.left().ok()?.is_empty().then_some(())
    })
    .with_context(|| format!("{:?}", held.left()))?;
    node.set_network_directory(KEPT_BACK)?;
    let began = Instant::now();
    node.power_on()?;
    eventually_within(WITHIN, "the pods to run again", || {
        let pods = pods_of(cluster, namespace, node.name()).ok()?;
        let again = pods.iter().all(|pod| {
            let restarts = before.iter().find(|one| one.name == pod.name).map(|one| one.restarts);
            pod.ready && Some(pod.restarts) > restarts
        });
        again.then_some(())
    })
    .with_context(|| cluster.diagnose_weft())?;
    println!("the pods of {} run again after {:.1} s", node.name(), began.elapsed().as_secs_f64());

    let web = cluster.get("pod", namespace, "web")?["status"]["podIP"].clone();
    let url = format!("http://{}:8080/", web.as_str().context("no address")?);
    for friend in ["friend", "friend-far"] {
        let ask = ["exec", friend, "--", "curl", "-sS", "-m3", &url];
        let answer = eventually_within(WITHIN, "a friend to be answered", || {
            cluster.kubectl(at.iter().chain(&ask)).ok()
        })?;
        ensure!(answer == "hello from shop/web\n", "{friend}: {answer:?}");
    }
    for pod in ["prisoner", "intruder"] {
        let log = eventually_within(WITHIN, &format!("{pod} to try"), || {
            let log = cluster.kubectl(["logs", pod].iter().chain(&at)).ok()?;
            (log.matches("tries").count() > 2).then_some(log)
        })?;
        let tries = log.matches("tries").count();
        println!("{pod} has tried {tries} times since its container began");
        ensure!(!log.contains("hello"), "{pod} was answered: {log:?}");
    }
    ensure!(watcher.is_running(), "who tries has ended: {}", watcher.stderr());
    let said = watcher.stdout();
    ensure!(!said.contains("hello"), "who is denied was answered: {said}");
    Ok(())
}

struct Pod {
    name: String,
    ready: bool,
    restarts: u64,
}

fn pods_of(cluster: &KubernetesCluster, namespace: &str, node: &str) -> Result<Vec<Pod>> {
    let on_node = format!("--field-selector=spec.nodeName={node}");
    let listed = ["get", "pods", "--namespace", namespace, &on_node, "-o", "json"];
    let listed: Value = serde_json::from_str(&cluster.kubectl(listed)?)?;
    let pods = listed["items"].as_array().context("pods")?.iter().map(|pod| {
        let containers = pod["status"]["containerStatuses"].as_array().context("containers")?;
        Ok(Pod {
            name: pod["metadata"]["name"].as_str().context("a name")?.to_owned(),
            ready: containers.iter().all(|container| container["ready"] == true),
            restarts: containers.iter().filter_map(|one| one["restartCount"].as_u64()).sum(),
        })
    });
    pods.collect()
}
