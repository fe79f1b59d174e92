//! A small shop on two nodes, and what tests do with it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{
    Builder, Cluster, Mesh, MeshOptions, Place, PodSpec, Process, ServiceSpec, eventually,
    skipped_without_root,
};

/// The port of servers.
pub const PORT: u16 = 8080;
/// How long what is waited for may take before the wait is given up, on a busy machine, too.
pub const SOON: Duration = Duration::from_secs(60);

/// A mesh on a cluster. The mesh is dropped before what it runs on.
#[derive(Debug)]
pub struct Shop {
    pub mesh: Mesh,
    pub cluster: Cluster,
}

/// `client` and `near` on node-a, `far` on node-b, each with a service account and a label `app`
/// of its name; `near-2` is a second backend of the service `near`. `world` is outside.
pub fn builder() -> Builder {
    let pod = |name: &str, node: &str| {
        PodSpec::new("shop", name, node)
            .label("app", name.trim_end_matches("-2"))
            .service_account(name)
            .port("http", PORT)
    };
    let service = |name: &str| {
        ServiceSpec::new("shop", name).selector("app", name).port(80, PORT).port_of("UDP", 53, PORT)
    };
    Cluster::builder()
        .node("node-a")
        .node("node-b")
        .outside("world")
        .pod(pod("client", "node-a"))
        .pod(pod("near", "node-a"))
        .pod(pod("near-2", "node-a"))
        .pod(pod("far", "node-b"))
        .service(service("near"))
        .service(service("far"))
}

/// The shop without policies; none where tests that need root are skipped.
pub fn open() -> Result<Option<Shop>> {
    open_with(builder(), &MeshOptions::default(), &[])
}

/// A shop with policies: names and texts of manifests.
pub fn open_with(
    builder: Builder,
    options: &MeshOptions,
    manifests: &[(&str, &str)],
) -> Result<Option<Shop>> {
    if skipped_without_root() {
        return Ok(None);
    }
    let cluster = builder.build()?;
    for (name, text) in manifests {
        cluster.apply(name, text)?;
    }
    let mesh = cluster.start_mesh(options)?;
    Ok(Some(Shop { mesh, cluster }))
}

impl Shop {
    /// Starts an echo server on TCP and UDP in a pod.
    pub fn serve(&self, pod: &str) -> Result<Process> {
        self.serve_with(pod, &[])
    }

    /// Starts a server in a pod with arguments of its own.
    pub fn serve_with(&self, pod: &str, arguments: &[&str]) -> Result<Process> {
        let pod = self.cluster.pod(pod)?;
        serve(&pod, arguments)
    }

    /// Connects from a pod, says hello and reads the answer.
    pub fn connect(&self, from: &str, to: SocketAddr) -> Result<Value> {
        self.connect_with(from, to, &["--send", "hello"])
    }

    /// Connects from a pod with arguments of its own.
    pub fn connect_with(&self, from: &str, to: SocketAddr, arguments: &[&str]) -> Result<Value> {
        let pod = self.cluster.pod(from)?;
        connect(&pod, to, arguments)
    }

    /// Connects, and expects the echo.
    pub fn expect_answer(&self, from: &str, to: SocketAddr) -> Result<Value> {
        let outcome = self.connect(from, to)?;
        ensure!(outcome["answer"] == "hello", "{from} to {to}: {outcome}\n{}", self.logs());
        Ok(outcome)
    }

    /// Connects, and expects that `connect()` itself is refused.
    pub fn expect_denied(&self, from: &str, to: SocketAddr) -> Result<Value> {
        let outcome = self.connect(from, to)?;
        let error = &outcome["error"]["name"];
        ensure!(error == "EPERM", "{from} to {to}: {outcome}\n{}", self.logs());
        Ok(outcome)
    }

    /// Connects to a pod whose ingress policy forbids it. Where that pod is on another node, that
    /// node judges, and resets what the proxies have opened by then.
    pub fn expect_refused(&self, from: &str, to: SocketAddr) -> Result<Value> {
        let outcome = self.connect(from, to)?;
        let refused = self.is_refusal(from, to, &outcome)?;
        ensure!(refused, "{from} to {to}: {outcome}\n{}", self.logs());
        Ok(outcome)
    }

    fn is_refusal(&self, from: &str, to: SocketAddr, outcome: &Value) -> Result<bool> {
        let pods = self.cluster.pods();
        let target = pods.iter().find(|pod| pod.addresses().both().contains(&to.ip()));
        let here = self.cluster.pod(from)?.node().to_owned();
        let remote = target.is_some_and(|target| target.node() != here);
        let error = &outcome["error"]["name"];
        let cut = outcome["answer"].is_null() && (error == "ECONNRESET" || error == "EAGAIN");
        Ok(outcome["error"]["name"] == "EPERM" || (remote && cut))
    }

    /// Repeats until a connection ends as is wanted: refused, or with an answer. Returns when
    /// the attempt that did was over, in microseconds since the Unix epoch.
    pub fn await_verdict(&self, from: &str, to: SocketAddr, allowed: bool) -> Result<u64> {
        let what = format!("{from} to {to} to be {}", if allowed { "allowed" } else { "denied" });
        let mut last = Value::Null;
        let awaited = eventually(&what, || {
            last = self.connect(from, to).ok()?;
            let seen = match allowed {
                true => last["answer"] == "hello",
                false => self.is_refusal(from, to, &last).ok()?,
            };
            if seen { last["at"].as_u64() } else { None }
        });
        awaited.with_context(|| format!("{last}\n{}", self.logs()))
    }

    /// Starts a connection on which something goes on all the time, to an echo server.
    pub fn probe(&self, from: &str, to: SocketAddr, milliseconds: u32) -> Result<Process> {
        let pod = self.cluster.pod(from)?;
        let probe = pod.tool("probe")?.arg(to.to_string());
        let milliseconds = milliseconds.to_string();
        let mut probe = probe.args(["--milliseconds", &milliseconds]).spawn()?;
        probe.await_event(SOON, "established").with_context(|| self.logs())?;
        Ok(probe)
    }

    /// The flows of a node that match the arguments of `weft observe`, as soon as there are any.
    pub fn flows(&self, node: &str, filter: &[&str]) -> Result<Vec<Value>> {
        self.await_flows(node, filter, 1)
    }

    /// The same, as soon as there are so many.
    pub fn await_flows(&self, node: &str, filter: &[&str], least: usize) -> Result<Vec<Value>> {
        let node = self.mesh.node(node)?;
        let mut words = vec!["observe", "--last", "1000", "-o", "json"];
        words.extend(filter);
        let what = format!("{least} flows on {} that match {filter:?}", node.name());
        let found = eventually(&what, || {
            let flows = node.weft(&words).ok()?.json();
            let flows: Vec<_> =
                flows.into_iter().filter(|flow| flow.get("verdict").is_some()).collect();
            (flows.len() >= least).then_some(flows)
        });
        found.with_context(|| self.logs())
    }

    /// What agents and proxies have logged.
    pub fn logs(&self) -> String {
        self.mesh
            .nodes()
            .iter()
            .map(|node| format!("{}:\n{}\n", node.name(), node.logs()))
            .collect()
    }
}

/// Starts a server on [`PORT`], for TCP and UDP.
pub fn serve(place: &Place, arguments: &[&str]) -> Result<Process> {
    let port = PORT.to_string();
    let run = place.tool("serve")?.args(["--tcp", &port, "--udp", &port]).args(arguments);
    let mut server = run.spawn()?;
    server.await_event(SOON, "listening")?;
    Ok(server)
}

/// Connects once.
pub fn connect(from: &Place, to: SocketAddr, arguments: &[&str]) -> Result<Value> {
    let output = from.tool("connect")?.arg(to.to_string()).args(arguments).output()?;
    let outcome = output.json().pop();
    outcome.with_context(|| format!("pod-tool said nothing: {}", output.stderr))
}

/// Microseconds since the Unix epoch, to compare with what `pod-tool` reports.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The peers that a server has accepted, without their ports; IPv4-mapped ones as IPv4.
pub fn accepted(server: &Process) -> Vec<std::net::IpAddr> {
    let lines = server.json().into_iter().filter(|line| line["event"] == "accept");
    let peers = lines.filter_map(|line| line["peer"].as_str()?.parse::<SocketAddr>().ok());
    peers.map(|peer| peer.ip().to_canonical()).collect()
}

/// Denies what reaches every pod of the shop.
pub const DENY_INGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: default-deny
  namespace: shop
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

/// A NetworkPolicy that lets pods with one label reach those with another.
pub fn allow(from: &str, to: &str) -> String {
    format!(
        "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {from}-to-{to}
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: {to}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: {from}
"
    )
}
