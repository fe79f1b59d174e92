//! What pods, and those who look after them, may expect of a cluster with Weft: all that Kubernetes
//! promises, also where everything is denied and mTLS is asked for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use weft_tests::image::{Compression, Image, write_archive};
use weft_tests::kubernetes::{WORKLOAD_IMAGE, kubernetes_program};
use weft_tests::{KubernetesCluster, Output, eventually_within};

use crate::pods::{curl, reach_by_kubectl};
use crate::shared::Shared;

const WITHIN: Duration = Duration::from_secs(90);
const ETCD_IMAGE: &str = "weft.test/etcd:1";

/// Nothing may come or go, and what comes must be encrypted.
const DENIED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: nothing, namespace: @ }
spec: { podSelector: {}, policyTypes: [Ingress, Egress] }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: strict, namespace: @ }
spec: { mtls: { mode: STRICT } }
";

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials_with_weft([
        ("probes_pass_where_all_is_denied_and_strict", probes),
        ("exec_logs_and_port_forward_where_all_is_denied_and_strict", kubectl),
        ("jobs_end_with_init_and_sidecar_containers", jobs),
        ("a_pod_of_a_statefulset_comes_back_as_who_it_was", statefulset),
        ("a_pod_that_terminates_keeps_what_it_has_open", draining),
    ])
}

/// Makes a namespace in the mesh, and applies manifests in which `@` is its name and `IMAGE` the
/// image of workloads.
fn deploy(cluster: &KubernetesCluster, namespace: &str, manifests: &str) -> Result<()> {
    cluster.create_namespace(namespace, &[("weft.dev/mesh", "enabled")])?;
    apply(cluster, namespace, manifests)
}

fn apply(cluster: &KubernetesCluster, namespace: &str, manifests: &str) -> Result<()> {
    let manifests = manifests.replace('@', namespace).replace("IMAGE", WORKLOAD_IMAGE);
    cluster.apply(&manifests).map(drop)
}

/// The IPv4 address of a pod, which it has once it runs.
fn address(cluster: &KubernetesCluster, namespace: &str, pod: &str) -> Result<String> {
    let pod = cluster.get("pod", namespace, pod)?;
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let mut ips = ips.filter_map(|ip| ip["ip"].as_str());
    let four = ips.find(|ip| !ip.contains(':')).context("no IPv4 address")?;
    Ok(four.to_owned())
}

fn probes(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "mesh-probes";
    let archive = cluster.directory().join("etcd.tar");
    let etcd = Image::new(ETCD_IMAGE).program("/usr/bin/etcd", &kubernetes_program("etcd")?)?;
    write_archive(&archive, &[etcd], Compression::None)?;
    cluster.import_image(&archive)?;
    std::fs::remove_file(&archive)?;

    let pod = |name: &str, image: &str, command: &str, probe: &str| {
        format!(
            "---\n\
             apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{ name: {name}, namespace: @, labels: {{ app: {name} }} }}\n\
             spec:\n  \
               nodeName: node-a\n  \
               terminationGracePeriodSeconds: 1\n  \
               containers:\n  \
               - name: main\n    \
                 image: {image}\n    \
                 command: {command}\n    \
                 startupProbe: {{ {probe}, periodSeconds: 1, failureThreshold: 60 }}\n    \
                 readinessProbe: {{ {probe}, periodSeconds: 1 }}\n    \
                 livenessProbe: {{ {probe}, periodSeconds: 1 }}\n"
        )
    };
    let etcd = "[etcd, --data-dir=/tmp/etcd, '--listen-client-urls=http://0.0.0.0:2379', \
                '--advertise-client-urls=http://localhost:2379']";
    let pods = [
        pod("http", "IMAGE", "[serve, '8080']", "httpGet: { path: /, port: 8080 }"),
        pod("tcp", "IMAGE", "[serve, '8080']", "tcpSocket: { port: 8080 }"),
        pod("grpc", ETCD_IMAGE, etcd, "grpc: { port: 2379 }"),
        pod("exec", "IMAGE", "[sleep, infinity]", "exec: { command: ['true'] }"),
    ];
    deploy(cluster, namespace, DENIED)?;
    apply(cluster, namespace, &pods.concat())?;
    cluster.await_pods(namespace, WITHIN)?;

    // It is denied to all but the node itself.
    let stranger = "mesh-probes-stranger";
    cluster.create_namespace(stranger, &[])?;
    apply(
        cluster,
        stranger,
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: { name: client, namespace: @ }\n\
         spec:\n  \
           nodeName: node-a\n  \
           terminationGracePeriodSeconds: 1\n  \
           containers: [{ name: main, image: IMAGE, command: [sleep, infinity] }]\n\
         ---\n\
         apiVersion: v1\n\
         kind: Pod\n\
         metadata: { name: http, namespace: @, labels: { app: http } }\n\
         spec:\n  \
           nodeName: node-a\n  \
           terminationGracePeriodSeconds: 1\n  \
           containers: [{ name: main, image: IMAGE, command: [serve, '8080'] }]\n",
    )?;
    cluster.await_pods(stranger, WITHIN)?;
    let url = format!("http://{}:8080/", address(cluster, namespace, "http")?);
    let answer = curl(cluster, stranger, &url);
    ensure!(answer.is_err(), "a stranger was answered: {answer:?}");
    let ask = ["curl", "-sS", "--max-time", "5", &url];
    let own = cluster.node("node-a")?.exec(ask)?.success()?;
    ensure!(own == "hello from mesh-probes/http\n", "{own:?}");
    let other = cluster.node("node-b")?.exec(ask)?;
    ensure!(!other.status.success(), "another node was answered: {}", other.stdout);

    // Who comes by a node port bears the node's address, and is not the node.
    let by_port = |namespace: &str| -> Result<Output> {
        let port = &cluster.get("service", namespace, "http")?["spec"]["ports"][0]["nodePort"];
        let address = cluster.node("node-a")?.host().addresses().ipv4;
        let url = format!("http://{address}:{port}/");
        cluster.node("node-b")?.exec(["curl", "-sS", "--max-time", "3", &url])
    };
    for namespace in [stranger, namespace] {
        apply(
            cluster,
            namespace,
            "apiVersion: v1\n\
             kind: Service\n\
             metadata: { name: http, namespace: @ }\n\
             spec: { type: NodePort, selector: { app: http }, ports: [{ port: 8080 }] }\n",
        )?;
    }
    // kube-proxy hears of both at about the same time.
    eventually_within(WITHIN, "the node port of a pod outside the mesh to answer", || {
        (by_port(stranger).ok()?.stdout == "hello from mesh-probes-stranger/http\n").then_some(())
    })?;
    let answer = by_port(namespace)?;
    ensure!(!answer.status.success(), "a client of a node port was answered: {}", answer.stdout);
    ensure!(answer.stderr.contains("timed out"), "there is no such port: {}", answer.stderr);

    let pods = cluster.kubectl(["get", "pods", "--namespace", namespace, "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods)?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{} was restarted", pod["metadata"]["name"]);
    }
    Ok(())
}

fn kubectl(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "mesh-reach";
    deploy(cluster, namespace, DENIED)?;
    reach_by_kubectl(cluster, namespace)
}

const SERVER: &str = "
apiVersion: v1
kind: Service
metadata: { name: server, namespace: @ }
spec: { selector: { app: server }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: server, namespace: @, labels: { app: server } }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: IMAGE
    command: [serve, '8080']
    readinessProbe: { httpGet: { port: 8080 }, periodSeconds: 1 }
---
";

fn jobs(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "mesh-jobs";
    deploy(cluster, namespace, SERVER)?;
    cluster.await_pods(namespace, WITHIN)?;
    apply(
        cluster,
        namespace,
        "
apiVersion: batch/v1
kind: Job
metadata: { name: job, namespace: @ }
spec:
  backoffLimit: 0
  completions: 3
  parallelism: 3
  template:
    spec:
      nodeName: node-b
      restartPolicy: Never
      initContainers:
      - name: before
        image: IMAGE
        command: [curl, -sS, --max-time, '20', 'http://server/']
      - name: beside
        image: IMAGE
        restartPolicy: Always
        command: [serve, '9090']
        startupProbe: { httpGet: { port: 9090 }, periodSeconds: 1 }
      containers:
      - name: main
        image: IMAGE
        command: [curl, -sS, --max-time, '20', 'http://localhost:9090/', 'http://server/']
",
    )?;
    let at = ["--namespace", namespace];
    let log = |container: &str| {
        let of_the_job = ["logs", "-l", "job-name=job", "--tail=-1", "-c", container];
        cluster.kubectl(of_the_job.iter().chain(&at))
    };
    let wait = ["wait", "job/job", "--for=condition=Complete", "--timeout=90s"];
    cluster.kubectl(wait.iter().chain(&at)).with_context(|| {
        let pods = cluster.kubectl(["get", "pods,events", "--namespace", namespace]);
        format!("{pods:?}\nbefore: {:?}\nmain: {:?}", log("before"), log("main"))
    })?;
    // Their first words, too, come from pods that have just begun.
    let (before, main) = (log("before")?, log("main")?);
    ensure!(before == "hello from mesh-jobs/server\n".repeat(3), "{before:?}");
    ensure!(main.matches("hello from mesh-jobs/job-").count() == 3, "{main:?}");
    ensure!(main.matches("hello from mesh-jobs/server\n").count() == 3, "{main:?}");
    let phase = "--output=jsonpath={.items[*].status.phase}";
    let phase = cluster.kubectl(["get", "pods", "-l", "job-name=job", phase].iter().chain(&at))?;
    ensure!(phase == "Succeeded Succeeded Succeeded", "the job's pods are {phase:?}");
    Ok(())
}

fn statefulset(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "mesh-stateful";
    deploy(cluster, namespace, SERVER)?;
    apply(
        cluster,
        namespace,
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: for-the-first, namespace: @ }
spec:
  podSelector: { matchLabels: { app: server } }
  ingress: [{ from: [{ podSelector: { matchLabels: { statefulset.kubernetes.io/pod-name: set-0 } } }] }]
---
apiVersion: v1
kind: Service
metadata: { name: set, namespace: @ }
spec: { clusterIP: None, selector: { app: set }, ports: [{ port: 8080 }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: set, namespace: @ }
spec:
  replicas: 2
  serviceName: set
  podManagementPolicy: Parallel
  selector: { matchLabels: { app: set } }
  template:
    metadata: { labels: { app: set } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: IMAGE
        command: [serve, '8080']
        readinessProbe: { httpGet: { port: 8080 }, periodSeconds: 1 }
",
    )?;
    let at = ["--namespace", namespace];
    let rolled_out = ["rollout", "status", "statefulset/set", "--timeout=90s"];
    let from = |pod: &str, url: &str| {
        let words = ["exec", pod, "--", "curl", "-sS", "--max-time", "3", url];
        cluster.kubectl(at.iter().chain(&words))
    };
    let all_is_as_it_should_be = || -> Result<()> {
        cluster.kubectl(rolled_out.iter().chain(&at))?;
        cluster.await_pods(namespace, WITHIN)?;
        let first = from("set-0", "http://server/")?;
        ensure!(first == "hello from mesh-stateful/server\n", "{first:?}");
        ensure!(from("set-1", "http://server/").is_err(), "the second was answered");
        let name = "http://set-0.set.mesh-stateful.svc.cluster.local:8080/";
        // CoreDNS remembers for 5 s what it was told last.
        eventually_within(WITHIN, "the first to be found by its name", || {
            (from("set-1", name).ok()? == "hello from mesh-stateful/set-0\n").then_some(())
        })
    };
    all_is_as_it_should_be()?;
    let before = cluster.get("pod", namespace, "set-0")?["metadata"]["uid"].clone();
    cluster.kubectl(["delete", "pod", "set-0"].iter().chain(&at))?;
    eventually_within(WITHIN, "the first to be made anew", || {
        let now = cluster.get("pod", namespace, "set-0").ok()?["metadata"]["uid"].clone();
        (now != before).then_some(())
    })?;
    all_is_as_it_should_be()
}

fn draining(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "mesh-drain";
    let client = |name: &str, node: &str| {
        format!(
            "---\n\
             apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{ name: {name}, namespace: @ }}\n\
             spec:\n  \
               nodeName: {node}\n  \
               terminationGracePeriodSeconds: 1\n  \
               containers: [{{ name: main, image: IMAGE, command: [sleep, infinity] }}]\n"
        )
    };
    deploy(cluster, namespace, &[client("near", "node-a"), client("far", "node-b")].concat())?;
    apply(
        cluster,
        namespace,
        "
apiVersion: v1
kind: Pod
metadata: { name: server, namespace: @ }
spec:
  nodeName: node-a
  terminationGracePeriodSeconds: 120
  containers:
  - name: main
    image: IMAGE
    command: [sh, -c, 'trap exit TERM; pod-tool serve --tcp 9000 --quiet & wait']
    readinessProbe: { tcpSocket: { port: 9000 }, periodSeconds: 1 }
    lifecycle:
      preStop: { exec: { command: [sh, -c, 'until test -e /tmp/end; do sleep 0.1; done'] } }
",
    )?;
    cluster.await_pods(namespace, WITHIN)?;
    let at = ["--namespace", namespace];
    let server = address(cluster, namespace, "server")?;
    let inside = |pod: &str, script: &str| {
        let words = ["exec", pod, "--", "sh", "-c", script];
        cluster.kubectl(at.iter().chain(&words))
    };
    let clients = ["near", "far"];
    for client in clients {
        let connect = format!(
            "mkfifo /tmp/in; sleep infinity > /tmp/in & nc {server} 9000 < /tmp/in > /tmp/out &"
        );
        inside(client, &format!("{{ {connect} }} > /dev/null 2>&1"))?;
    }
    let say = |client: &str, word: &str| {
        inside(client, &format!("timeout 20 sh -c 'echo {word} > /tmp/in'"))?;
        eventually_within(WITHIN, &format!("the echo of {word:?} at {client}"), || {
            inside(client, &format!("grep {word} /tmp/out")).ok()
        })
    };
    for client in clients {
        say(client, "before")?;
    }
    cluster.kubectl(["delete", "pod", "server", "--wait=false"].iter().chain(&at))?;
    // Who knows a pod that was made later knows of the end of this one.
    let later = [client("later-near", "node-a"), client("later-far", "node-b")].concat();
    apply(cluster, namespace, &later)?;
    let ready =
        ["wait", "--for=condition=Ready", "--timeout=90s", "pod/later-near", "pod/later-far"];
    cluster.kubectl(ready.iter().chain(&at))?;
    for pod in ["later-near", "later-far"] {
        let connect = format!("echo hello | timeout 20 nc {server} 9000 | head -n 1");
        let answer = inside(pod, &connect)?;
        ensure!(answer == "hello\n", "{pod}: {answer:?}");
    }
    let ending = cluster.get("pod", namespace, "server")?;
    ensure!(ending["metadata"]["deletionTimestamp"].is_string(), "the server does not terminate");
    for client in clients {
        say(client, "after")?;
    }
    inside("server", "touch /tmp/end")?;
    let gone = ["wait", "pod/server", "--for=delete", "--timeout=60s"];
    cluster.kubectl(gone.iter().chain(&at)).map(drop)
}
