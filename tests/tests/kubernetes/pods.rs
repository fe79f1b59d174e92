//! What pods and their users may expect of any Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use weft_tests::kubernetes::WORKLOAD_IMAGE;
use weft_tests::{KubernetesCluster, eventually_within};

use crate::shared::Shared;

const READY_WITHIN: Duration = Duration::from_secs(60);

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials([
        ("pods_on_two_nodes_talk", talk),
        ("a_readiness_probe_decides_who_serves", readiness),
        ("exec_logs_and_port_forward", kubectl_reaches_pods),
    ])
}

/// A namespace with a server on one node and a client on the other.
fn deploy(cluster: &KubernetesCluster, namespace: &str) -> Result<()> {
    cluster.create_namespace(namespace, &[])?;
    deploy_into(cluster, namespace)
}

fn deploy_into(cluster: &KubernetesCluster, namespace: &str) -> Result<()> {
    let pod = |name: &str, node: &str, command: &str| {
        format!(
            "---\n\
             apiVersion: v1\n\
             kind: Pod\n\
             metadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: {name} }} }}\n\
             spec:\n  \
               nodeName: {node}\n  \
               terminationGracePeriodSeconds: 1\n  \
               containers:\n  \
               - name: main\n    \
                 image: {WORKLOAD_IMAGE}\n    \
                 command: {command}\n"
        )
    };
    let server = pod("server", "node-a", "[serve, '8080']");
    let client = pod("client", "node-b", "[sleep, infinity]");
    cluster.apply(&format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{ name: server, namespace: {namespace} }}\n\
         spec:\n  \
           ipFamilyPolicy: PreferDualStack\n  \
           selector: {{ app: server }}\n  \
           ports: [{{ port: 80, targetPort: 8080 }}]\n"
    ))?;
    let probe = "    readinessProbe:\n      httpGet: { port: 8080 }\n      periodSeconds: 1\n";
    cluster.apply(&[&server, probe, &client].concat())?;
    cluster.await_pods(namespace, READY_WITHIN)
}

/// What curl says in the pod `client` of a namespace.
pub fn curl(cluster: &KubernetesCluster, namespace: &str, url: &str) -> Result<String> {
    let words = ["exec", "--namespace", namespace, "client", "--"];
    cluster.kubectl(words.into_iter().chain(["curl", "-sS", "--max-time", "5", url]))
}

fn addresses(value: &serde_json::Value, field: &str) -> Result<Vec<String>> {
    let addresses = value.pointer(field).and_then(|value| value.as_array());
    let addresses = addresses.with_context(|| format!("no {field} in {value}"))?.iter();
    let text = addresses.filter_map(|address| address["ip"].as_str().or(address.as_str()));
    Ok(text.map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }).collect())
}

fn talk(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "talk";
    deploy(cluster, namespace)?;
    let pod = cluster.get("pod", namespace, "server")?;
    let pods = addresses(&pod, "/status/podIPs")?;
    ensure!(pods.len() == 2, "the pod has no address of each family: {pods:?}");
    let service = cluster.get("service", namespace, "server")?;
    let services = addresses(&service, "/spec/clusterIPs")?;
    ensure!(services.len() == 2, "the service has no address of each family: {services:?}");
    let urls = pods.iter().map(|ip| format!("http://{ip}:8080/"));
    let services = services.iter().map(|ip| format!("http://{ip}/"));
    let name = format!("http://server.{namespace}.svc.cluster.local/");
    for url in urls.chain(services).chain([name]) {
        // kube-proxy and CoreDNS hear of an endpoint a moment after it is Ready.
        let mut last = None;
        let answer = eventually_within(READY_WITHIN, &url, || {
            last = Some(curl(cluster, namespace, &url));
            last.as_ref().and_then(|answer| answer.as_ref().ok().cloned())
        });
        let answer = answer.with_context(|| format!("{last:?}"))?;
        ensure!(answer == "hello from talk/server\n", "{url} says {answer:?}");
    }
    Ok(())
}

fn readiness(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "readiness";
    deploy(cluster, namespace)?;
    cluster.apply(&format!(
        "apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{ name: late, namespace: {namespace} }}\n\
         spec:\n  \
           terminationGracePeriodSeconds: 1\n  \
           containers:\n  \
           - name: main\n    \
             image: {WORKLOAD_IMAGE}\n    \
             command: [sleep, infinity]\n    \
             readinessProbe:\n      \
               exec: {{ command: [cat, /tmp/ready] }}\n      \
               periodSeconds: 1\n"
    ))?;
    let pod = ["--namespace", namespace, "pod/late"];
    let wait = |condition: &str| {
        let condition = format!("--for={condition}");
        cluster.kubectl(["wait", "--timeout=60s", &condition].into_iter().chain(pod))
    };
    wait("jsonpath={.status.phase}=Running")?;
    wait("condition=Ready=false")?;
    cluster.kubectl(["exec", "--namespace", namespace, "late", "--", "touch", "/tmp/ready"])?;
    wait("condition=Ready")?;
    Ok(())
}

fn kubectl_reaches_pods(cluster: &KubernetesCluster) -> Result<()> {
    let namespace = "reach";
    cluster.create_namespace(namespace, &[])?;
    reach_by_kubectl(cluster, namespace)
}

/// Tries `kubectl exec`, `logs` and `port-forward` on pods in a namespace that has none yet.
pub fn reach_by_kubectl(cluster: &KubernetesCluster, namespace: &str) -> Result<()> {
    deploy_into(cluster, namespace)?;
    let inside = ["exec", "--namespace", namespace, "client", "--"];
    let name = cluster.kubectl(inside.into_iter().chain(["hostname"]))?;
    ensure!(name == "client\n", "the pod's name is {name:?}");
    let failed = cluster.kubectl(inside.into_iter().chain(["false"]));
    ensure!(failed.is_err(), "the end of a program is not told");

    let script = "echo to the log > /proc/1/fd/1";
    cluster.kubectl(inside.into_iter().chain(["sh", "-c", script]))?;
    let log = cluster.kubectl(["logs", "--namespace", namespace, "client"])?;
    ensure!(log == "to the log\n", "the log has {log:?}");

    let words = ["port-forward", "--namespace", namespace, "pod/server", ":8080"];
    let mut forward = cluster.kubectl_command(words)?.spawn()?;
    let line = forward.await_line("Forwarding from 127.0.0.1:")?;
    let port = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok());
    let port = port.with_context(|| format!("no port in {line:?}"))?;
    let url = format!("http://127.0.0.1:{port}/");
    let answer = cluster.host("control-plane")?.exec(["curl", "-sS", "--max-time", "5", &url])?;
    let answer = answer.success()?;
    let expected = format!("hello from {namespace}/server\n");
    ensure!(answer == expected, "{url} says {answer:?}");
    Ok(())
}
