//! The bookshop on a real Kubernetes of two nodes, with Weft installed by its chart.

mod privileges;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_tests::kubernetes::WEFT_NAMESPACE;
use weft_tests::{Cluster, KubernetesCluster, KubernetesOptions, Output, PodAddresses, Process};

use super::expectation::{PLAN, Plan, Target};
use super::shop::{Shop, manifests};
use super::stage::{Stage, traffic};
use super::{conclude, print};
use crate::repository::{root, target};
use crate::steps::Steps;
use crate::{image, kubernetes, nginx};

/// The demo's cluster; there is one at a time.
const NAME: &str = "demo-kubernetes";
/// What the test cluster calls it.
pub const FULL_NAME: &str = "weft-demo-kubernetes";
/// What the image is called on the nodes.
const IMAGE: &str = "weft.dev/weft:demo";
/// Images are there already: pods start as quickly as the machine can.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// Runs the demo.
///
/// # Errors
/// When the cluster or the mesh does not come up.
pub fn demo(steps: &mut Steps, keep: bool) -> Result<ExitCode> {
    kubernetes::build(steps)?;
    let archive = target().join("xtask").join("demo-image.tar");
    image::write(steps, IMAGE, &archive)?;
    let start = Instant::now();
    let plan = Plan::read(&root().join(PLAN))?;
    Cluster::remove(FULL_NAME).context("an earlier demo is in the way")?;

    let cluster =
        steps.during("Kubernetes: control plane and two nodes", |_| start_cluster(&plan))?;
    let servers = serve_outside(&cluster, &plan)?;
    steps.during("helm install weft charts/weft", |_| {
        cluster.import_image(&archive)?;
        // The shop speaks Cilium's and Istio's dialects.
        cluster.install_weft(IMAGE, &["compat.crds=true"])
    })?;
    steps.during("kubectl apply: the bookshop", |_| deploy(&cluster))?;
    let stage = OnKubernetes::new(&cluster)?;
    let seen = steps.during("the shop's traffic", |_| traffic(&stage, &plan))?;
    let disagree = print(&plan, &seen);
    print_privileges(&cluster)?;
    if keep {
        print_how_to_play(&cluster);
        servers.into_iter().for_each(Process::detach);
        cluster.keep()?;
    }
    Ok(conclude(disagree, plan.expectations.len(), start))
}

fn start_cluster(plan: &Plan) -> Result<KubernetesCluster> {
    let options = KubernetesOptions::default().name(NAME).nodes(&plan.nodes).dns();
    let options = plan.hosts.keys().fold(options, |options, host| options.outside(host));
    KubernetesCluster::start(&options)
}

/// Hosts beyond the cluster are processes of this machine, as in the standalone demo.
fn serve_outside(cluster: &KubernetesCluster, plan: &Plan) -> Result<Vec<Process>> {
    let serve = |(name, port): (&String, &u16)| {
        let folder = cluster.directory().join("nginx").join(name);
        nginx::start(cluster.host(name)?, &folder, *port, &format!("hello from {name}\n"))
    };
    plan.hosts.iter().map(serve).collect()
}

fn deploy(cluster: &KubernetesCluster) -> Result<()> {
    let folder = root().join("examples/bookshop");
    let shop = Shop::read(&folder)?;
    let keys: Vec<_> = shop.pods.iter().map(|(pod, _)| pod.key()).collect();
    let namespaces = keys.iter().filter_map(|key| key.split_once('/'));
    let namespaces: BTreeSet<_> = namespaces.map(|(namespace, _)| namespace).collect();
    for file in manifests(&folder)? {
        cluster.kubectl(["apply", "-f", &*file.to_string_lossy()])?;
        if fs::read_to_string(&file)?.contains("kind: Namespace") {
            namespaces.iter().try_for_each(|namespace| cluster.await_account(namespace))?;
        }
    }
    namespaces.into_iter().try_for_each(|namespace| cluster.await_pods(namespace, READY_WITHIN))
}

/// The shop's addresses as the API server gave them, and kubectl for the rest.
struct OnKubernetes<'a> {
    cluster: &'a KubernetesCluster,
    services: BTreeMap<String, PodAddresses>,
    pods: BTreeMap<String, PodAddresses>,
    agents: Vec<String>,
}

impl<'a> OnKubernetes<'a> {
    fn new(cluster: &'a KubernetesCluster) -> Result<Self> {
        let all = |kind: &str| -> Result<Vec<Value>> {
            let text = cluster.kubectl(["get", kind, "--all-namespaces", "--output=json"])?;
            let mut list: Value = serde_json::from_str(&text)?;
            Ok(serde_json::from_value(list["items"].take())?)
        };
        let (services, pods) = (all("services")?, all("pods")?);
        let addresses = |objects: &[Value], field: &str| {
            let found = objects.iter().filter_map(|object| {
                Some((key(object)?, both(object.pointer(field)?.as_array()?)?))
            });
            found.collect()
        };
        let is_agent = |pod: &&Value| {
            pod["metadata"]["namespace"] == WEFT_NAMESPACE
                && pod["metadata"]["labels"]["app.kubernetes.io/component"] == "agent"
        };
        let agents = pods.iter().filter(is_agent);
        let agents = agents.filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()));
        Ok(Self {
            cluster,
            services: addresses(&services, "/spec/clusterIPs"),
            pods: addresses(&pods, "/status/podIPs"),
            agents: agents.collect(),
        })
    }
}

impl Stage for OnKubernetes<'_> {
    fn addresses(&self, target: &Target) -> Result<PodAddresses> {
        let found = match target {
            Target::Service(name) => self.services.get(name).copied(),
            Target::Pod(name) => self.pods.get(name).copied(),
            Target::Host(name) => Some(self.cluster.host(name)?.public_addresses()),
        };
        found.with_context(|| format!("{target} has no address of each family"))
    }

    fn curl(&self, pod: &str, arguments: &[&str]) -> Result<Output> {
        let Some((namespace, name)) = pod.split_once('/') else {
            bail!("{pod} is no `namespace/name`");
        };
        let words = ["exec", "--namespace", namespace, name, "--", "curl"];
        self.cluster.kubectl_command(words.iter().chain(arguments))?.output()
    }

    fn weft_on_all_nodes(&self, words: &[&str]) -> Result<Vec<String>> {
        let ask = |agent: &String| {
            let exec =
                ["exec", "--namespace", WEFT_NAMESPACE, agent, "--container=agent", "--", "weft"];
            self.cluster.kubectl(exec.iter().chain(words))
        };
        self.agents.iter().map(ask).collect()
    }
}

fn key(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    Some(format!("{}/{}", metadata["namespace"].as_str()?, metadata["name"].as_str()?))
}

/// One address of each family, from a list of texts or of `{ ip: TEXT }`.
fn both(list: &[Value]) -> Option<PodAddresses> {
    let addresses = list.iter().filter_map(|value| value["ip"].as_str().or(value.as_str()));
    let (mut four, mut six) = (None, None);
    for address in addresses {
        match address.parse().ok()? {
            IpAddr::V4(address) => four = Some(address),
            IpAddr::V6(address) => six = Some(address),
        }
    }
    Some(PodAddresses { ipv4: four?, ipv6: six? })
}

/// Prints what the mesh's processes may do, as the kernel has it.
fn print_privileges(cluster: &KubernetesCluster) -> Result<()> {
    println!("\nWhat the mesh's processes may do, by /proc/PID/status:");
    for node in cluster.nodes() {
        for (program, user, capabilities) in privileges::of(node.host().branch())? {
            println!("  {:8} {program:12} user {user:6} {capabilities}", node.name());
        }
    }
    Ok(())
}

fn print_how_to_play(cluster: &KubernetesCluster) {
    println!(
        "\nThe cluster is left up. To play with it:\n\n  \
         export KUBECONFIG={kubeconfig}\n  \
         export PATH={programs}:$PATH\n  \
         kubectl get pods --all-namespaces -o wide\n  \
         kubectl exec -n shop web -- curl -s http://catalog.shop/       # allowed\n  \
         kubectl exec -n shop web -- curl -sS http://payments.bank:443/  # denied\n  \
         kubectl exec -n {WEFT_NAMESPACE} ds/weft-agent -- weft observe --last 20\n  \
         cargo xtask demo down",
        kubeconfig = cluster.kubeconfig().display(),
        programs = weft_tests::kubernetes::kubernetes_program("kubectl")
            .ok()
            .and_then(|path| Some(path.parent()?.display().to_string()))
            .unwrap_or_default(),
    );
}
