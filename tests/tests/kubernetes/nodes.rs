//! What befalls nodes and the control plane.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use weft_tests::kubernetes::WORKLOAD_IMAGE;
use weft_tests::{Cluster, Cni, KubernetesCluster, KubernetesOptions, Qos, eventually_within};

use crate::shared::{Shared, failed};

const WITHIN: Duration = Duration::from_secs(60);

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    let cgroups = |cluster: &KubernetesCluster| cgroups(cluster, "node-a");
    let mut trials = shared.trials([("pods_have_cgroups_of_their_class", cgroups)]);
    trials.push(Trial::test("a_cluster_of_its_own_leaves_no_trace", || own().map_err(failed)));
    trials
}

fn pod(name: &str, namespace: &str, resources: &str) -> String {
    format!(
        "---\n\
         apiVersion: v1\n\
         kind: Pod\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\n\
         spec:\n  \
           terminationGracePeriodSeconds: 1\n  \
           containers:\n  \
           - name: main\n    \
             image: {WORKLOAD_IMAGE}\n    \
             command: [serve, '8080']\n    \
             resources: {resources}\n"
    )
}

/// Pods' cgroups are where a kubelet with the node's driver makes them, so that an agent finds them
/// alike.
pub fn cgroups(cluster: &KubernetesCluster, node: &str) -> Result<()> {
    let namespace = "classes";
    cluster.create_namespace(namespace, &[])?;
    let classes = [
        ("guaranteed", "{ limits: { cpu: 100m, memory: 64Mi } }", Qos::Guaranteed),
        ("burstable", "{ requests: { cpu: 100m } }", Qos::Burstable),
        ("besteffort", "{}", Qos::BestEffort),
    ];
    let on_node = format!("spec:\n  nodeName: {node}\n");
    let pods = classes
        .map(|(name, resources, _)| pod(name, namespace, resources).replace("spec:\n", &on_node));
    cluster.apply(&pods.concat())?;
    cluster.await_pods(namespace, WITHIN)?;
    let node = cluster.node(node)?;
    let driver = node.cgroup_driver();
    let pods = node.host().branch().join(driver.root());
    for (name, _, class) in classes {
        let pod = cluster.get("pod", namespace, name)?;
        let text = |field: &str| -> Result<String> {
            let value = pod.pointer(field).and_then(|value| value.as_str());
            Ok(value.with_context(|| format!("pod {name} has no {field}"))?.to_owned())
        };
        let uid = text("/metadata/uid")?;
        let container = text("/status/containerStatuses/0/containerID")?;
        let container = container.trim_start_matches("containerd://");
        let cgroup = pods.join(driver.pod(class, &uid)).join(driver.container(container));
        let processes = std::fs::read_to_string(cgroup.join("cgroup.procs"))
            .with_context(|| cgroup.display().to_string())?;
        ensure!(!processes.is_empty(), "no process is in {}", cgroup.display());
    }
    Ok(())
}

/// Beside the other cluster: another plugin, without kube-proxy; its parts are restarted.
fn own() -> Result<()> {
    let options = KubernetesOptions::default().nodes(["solo"]).cni(Cni::Bridge);
    let cluster = KubernetesCluster::start(&options.without_kube_proxy())?;
    let name = cluster.name().to_owned();
    cluster.create_namespace("test", &[])?;
    cluster.apply(&[pod("one", "test", "{}"), pod("two", "test", "{}")].concat())?;
    cluster.await_pods("test", WITHIN)?;
    let before = containers(&cluster)?;
    let address = cluster.kubectl([
        "get",
        "pod",
        "two",
        "--namespace=test",
        "--output=jsonpath={.status.podIP}",
    ])?;
    let url = format!("http://{address}:8080/");
    let ask = || {
        let words = ["exec", "--namespace=test", "one", "--", "curl", "-sS", "-m5", &url];
        cluster.kubectl(words)
    };
    ensure!(ask()? == "hello from test/two\n");

    cluster.kill_api_server();
    cluster.start_api_server()?;
    let node = cluster.node("solo")?;
    node.stop_kubelet();
    node.stop_containerd();
    node.start_containerd()?;
    node.start_kubelet()?;
    eventually_within(WITHIN, "the pod to be reached again", || ask().ok())?;
    let after = containers(&cluster)?;
    ensure!(after == before, "containers were {before}, and are {after}");
    ensure!(cluster.helm(["list", "--all-namespaces"])?.contains("NAME"));

    drop(cluster);
    ensure!(Cluster::list()?.iter().all(|cluster| cluster.name != name), "{name} is listed");
    let traces = weft_tests::Traces::of(&name)?;
    ensure!(traces.is_empty(), "there is left:\n{traces}");
    Ok(())
}

fn containers(cluster: &KubernetesCluster) -> Result<String> {
    let path = "--output=jsonpath={.items[*].status.containerStatuses[*].containerID}";
    cluster.kubectl(["get", "pod", "--namespace=test", path])
}
