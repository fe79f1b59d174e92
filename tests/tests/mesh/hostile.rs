//! What a hostile pod tries: `near-2` against the others. It has what a container runtime grants
//! by default, NET_RAW with it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{Host, Pod, PodSpec, eventually};

use crate::shop::{
    DENY_INGRESS, PORT, SOON, Shop, accepted, allow, builder, connect, open, open_with,
};

const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15008;

/// Only `client` may reach `near` and `far`; `near-2` carries the label of `near`.
fn closed() -> Result<Option<Shop>> {
    let manifests = format!("{}---\n{}", allow("client", "near"), allow("client", "far"));
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*manifests)];
    open_with(builder(), &Default::default(), &policies)
}

fn v4(shop: &Shop, pod: &str) -> Result<Ipv4Addr> {
    Ok(shop.cluster.pod(pod)?.addresses().ipv4)
}

fn forge(
    shop: &Shop,
    way: &str,
    source: SocketAddrV4,
    to: SocketAddrV4,
    more: &[&str],
) -> Result<Value> {
    let attacker = shop.cluster.pod("shop/near-2")?;
    let run = attacker.tool("forge")?.args([way, "--source", &source.to_string()]);
    let output = run.args(["--to", &to.to_string(), "--count", "20"]).args(more).output()?;
    output.json().pop().with_context(|| output.stderr)
}

/// Neither a raw socket nor a frame past the cgroup's hooks passes for another pod.
#[test]
fn a_forged_source_reaches_nobody() -> Result<()> {
    let Some(shop) = closed()? else { return Ok(()) };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    // First what an honest client does, so that the servers are known to hear.
    let client = shop.cluster.pod("shop/client")?;
    for to in ["shop/near", "shop/far"] {
        let to = SocketAddr::new(v4(&shop, to)?.into(), PORT).to_string();
        let answer = client.tool("datagram")?.args([&to, "--send", "honest"]).output()?.json();
        ensure!(answer[0]["text"] == "honest", "{answer:?}\n{}", shop.logs());
    }
    for way in ["raw", "packet"] {
        for to in ["shop/near", "shop/far"] {
            let to = SocketAddrV4::new(v4(&shop, to)?, PORT);
            for source in [v4(&shop, "shop/client")?, Ipv4Addr::new(203, 0, 113, 1)] {
                let source = SocketAddrV4::new(source, 40_000);
                forge(&shop, way, source, to, &["--udp", "forged"])?;
                forge(&shop, way, source, to, &[])?;
            }
            // Its own address, past the hooks at which its packets are judged.
            let own = SocketAddrV4::new(v4(&shop, "shop/near-2")?, 40_000);
            forge(&shop, way, own, to, &["--udp", "forged"])?;
            forge(&shop, way, own, to, &[])?;
        }
    }
    // What was sent before has arrived, if anything did, when this has.
    for to in ["shop/near", "shop/far"] {
        let to = SocketAddr::new(v4(&shop, to)?.into(), PORT).to_string();
        client.tool("datagram")?.args([&to, "--send", "last"]).output()?;
    }
    for server in &servers {
        let heard = server.json();
        let texts: Vec<_> = heard.iter().filter_map(|line| line["text"].as_str()).collect();
        ensure!(texts == ["honest", "last"], "{texts:?}");
        ensure!(accepted(server).is_empty(), "{heard:?}");
    }
    // No half-open connection was made in the servers' namespaces.
    for pod in ["shop/near", "shop/far"] {
        let pod = shop.cluster.pod(pod)?;
        let sockets = pod.exec(["cat", "/proc/net/tcp"])?.success()?;
        ensure!(!sockets.lines().any(|line| line.contains(" 03 ")), "{sockets}");
    }
    Ok(())
}

/// Who dials the proxy's own ports gets nowhere.
#[test]
fn the_proxys_ports_are_no_way_in() -> Result<()> {
    let Some(shop) = closed()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    shop.expect_answer("shop/client", shop.cluster.pod("shop/far")?.v4(PORT))?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    let connect_request = format!("CONNECT {far} HTTP/1.1\r\nHost: {far}\r\n\r\n");
    let world = shop.cluster.node("world")?;
    for node in ["node-a", "node-b"] {
        let addresses = shop.cluster.node(node)?.addresses();
        for port in [OUTBOUND, INBOUND] {
            for ip in [addresses.ipv4.into(), addresses.ipv6.into()] {
                let to = SocketAddr::new(ip, port);
                let arguments = ["--send", &connect_request, "--milliseconds", "1000"];
                let from_pod = shop.connect_with("shop/near-2", to, &arguments)?;
                let from_world = connect(world, to, &arguments)?;
                for outcome in [from_pod, from_world] {
                    let answer = outcome["answer"].as_str().unwrap_or_default();
                    // A TLS alert is all that may come back.
                    ensure!(answer.len() < 32 && !answer.contains("200"), "{to}: {outcome}");
                }
            }
        }
    }
    // The proxy serves on all the same.
    shop.expect_answer("shop/client", far)?;
    Ok(())
}

/// Neither what the kernel wrote down of a pod that has gone, nor its address, vouches for
/// another.
#[test]
fn the_address_of_a_pod_that_has_gone_vouches_for_nobody() -> Result<()> {
    const NUMBER: u8 = 99;
    let Some(shop) = closed()? else { return Ok(()) };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let targets = [shop.cluster.pod("shop/near")?.v4(PORT), shop.cluster.pod("shop/far")?.v4(PORT)];
    let spec = |name: &str, app: &str| {
        PodSpec::new("shop", name, "node-a").label("app", app).host_number(NUMBER)
    };
    let honest = shop.cluster.add_pod(spec("honest", "client"))?;
    let bind = SocketAddr::new(honest.addresses().ipv4.into(), 33_333).to_string();
    let arguments = ["--send", "hello", "--bind", &bind];
    for to in targets {
        shop.await_verdict("shop/honest", to, true)?;
        let outcome = shop.connect_with("shop/honest", to, &arguments)?;
        ensure!(outcome["answer"] == "hello", "{outcome}");
    }
    // It leaves with its connections open.
    let held: Vec<_> =
        targets.iter().map(|to| shop.probe("shop/honest", *to, 30_000)).collect::<Result<_>>()?;
    shop.cluster.remove_pod("shop/honest")?;
    drop(held);
    let before: Vec<_> = servers.iter().map(|server| accepted(server).len()).collect();
    // The other is there before the mesh has heard of it, with the same address and ports.
    let _evil = shop.cluster.add_pod(spec("evil", "evil").unlisted())?;
    let attempt = || -> Result<()> {
        for to in targets {
            for more in [&arguments[..], &["--send", "hello"]] {
                let outcome = shop.connect_with("shop/evil", to, more)?;
                ensure!(outcome["answer"].is_null(), "{to}: {outcome}\n{}", shop.logs());
            }
        }
        Ok(())
    };
    attempt()?;
    shop.cluster.list_pods(["shop/evil".to_owned()])?;
    attempt()?;
    let after: Vec<_> = servers.iter().map(|server| accepted(server).len()).collect();
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// A pod that opens all it can is stopped at its own bound, and the others go on.
#[test]
fn connections_without_end_starve_nobody() -> Result<()> {
    const TRIED: &str = "100000";
    let Some(shop) = open()? else { return Ok(()) };
    let attacker = shop.cluster.pod("shop/near-2")?;
    attacker.run("sh").arg("-c").arg("true").output()?;
    attacker
        .namespace()
        .enter(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000"))??;
    let near = shop.cluster.pod("shop/near")?;
    let run = near.tool("serve")?.args(["--tcp", "8080", "--tcp", "8081", "--mode", "stall"]);
    let mut server = run.arg("--quiet").spawn()?;
    server.await_event(SOON, "listening")?;
    let run = attacker.tool("hold")?.args([near.v4(8080), near.v4(8081)].map(|to| to.to_string()));
    let mut hold = run.args(["--count", TRIED]).spawn()?;
    let _echo = shop.serve("shop/far")?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    // While it opens, and when it holds what it got.
    shop.expect_answer("shop/client", far)?;
    let holding = hold.await_event(Duration::from_secs(180), "holding")?;
    eprintln!("of {TRIED} connections: {holding}");
    shop.expect_answer("shop/client", far)?;
    let outcome = shop.connect_with("shop/client", near.v4(8081), &[])?;
    ensure!(outcome["event"] == "connected", "{outcome}\n{}", shop.logs());
    let status = shop.mesh.node("node-a")?.status()?;
    eprintln!("maps: {}", status["maps"]);
    let problems = status["problems"].as_array().map_or(0, Vec::len);
    eprintln!("problems: {}", status["problems"]);
    ensure!(problems == 0, "{}", status["problems"]);
    // What it held is given back.
    drop(hold);
    eventually("the attacker to connect again", || {
        let outcome = shop.connect_with("shop/near-2", near.v4(8081), &[]).ok()?;
        (outcome["event"] == "connected").then_some(())
    })?;
    Ok(())
}

/// A cgroup of its own below the pod's changes nothing of who it is.
#[test]
fn cgroups_below_the_pods_are_the_pods() -> Result<()> {
    let Some(shop) = closed()? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    for (pod, answer) in [("shop/client", "connected"), ("shop/near-2", "failed")] {
        let pod = shop.cluster.pod(pod)?;
        let deep = pod.cgroup().join("a/b/c");
        std::fs::create_dir_all(&deep)?;
        let tool = weft_tests::binary("pod-tool")?;
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec {} connect {near} --send hello",
            deep.display(),
            tool.display()
        );
        let output = pod.run("sh").args(["-c", &script]).privileged().output()?;
        let outcome = output.json().pop().with_context(|| output.stderr)?;
        ensure!(outcome["event"] == answer, "{}: {outcome}\n{}", pod.key(), shop.logs());
    }
    Ok(())
}

/// A pod with the node's network is the node, not a pod of the mesh.
#[test]
fn a_pod_with_the_nodes_network_is_the_node() -> Result<()> {
    let spec = PodSpec::new("shop", "host", "node-a").label("app", "evil").host_network();
    let policies = [("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder().pod(spec), &Default::default(), &policies)? else {
        return Ok(());
    };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    // Kubernetes lets a node reach its own pods, and no others.
    shop.expect_answer("shop/host", shop.cluster.pod("shop/near")?.v4(PORT))?;
    let arguments = ["--send", "hello", "--milliseconds", "500"];
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    let outcome = shop.connect_with("shop/host", far, &arguments)?;
    ensure!(outcome["answer"] != "hello", "{outcome}\n{}", shop.logs());
    ensure!(accepted(&servers[1]).is_empty());
    Ok(())
}

/// Sends what comes to a port of a node on to a pod, under the node's own address, as kube-proxy does
/// for node ports.
fn masquerade(node: &Host, port: u16, pod: &Pod) -> Result<()> {
    let (v4, v6) = (pod.v4(PORT), pod.v6(PORT));
    let rules = format!(
        "table inet masquerade{port} {{
            chain to {{
                type nat hook prerouting priority dstnat;
                meta nfproto ipv4 meta l4proto {{ tcp, udp }} th dport {port} dnat ip to {v4}
                meta nfproto ipv6 meta l4proto {{ tcp, udp }} th dport {port} dnat ip6 to {v6}
            }}
            chain from {{
                type nat hook postrouting priority srcnat;
                ct status dnat masquerade
            }}
        }}"
    );
    node.exec(["nft", &rules])?.success().map(drop)
}

/// A client whom the node has translated is not the node, which policy lets in.
#[test]
fn who_comes_by_a_node_port_is_not_the_node() -> Result<()> {
    const TO_NEAR: u16 = 30_080;
    const TO_FAR: u16 = 30_081;
    const EVERYBODY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: everybody, namespace: shop}
spec:
  podSelector: {matchLabels: {app: near}}
  ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}]
";
    // `near` and `client` are isolated, `far` is not.
    let manifests = format!("{}---\n{}", allow("far", "near"), allow("far", "client"));
    let policies = [("isolated.yaml", &*manifests)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let node = shop.cluster.node("node-a")?;
    masquerade(node, TO_NEAR, &*shop.cluster.pod("shop/near")?)?;
    masquerade(node, TO_FAR, &*shop.cluster.pod("shop/far")?)?;
    let addresses = node.addresses();
    let at =
        |port| [addresses.ipv4.into(), addresses.ipv6.into()].map(|ip| SocketAddr::new(ip, port));
    let world = shop.cluster.node("world")?;
    let is_answered = |to: SocketAddr, udp: bool| -> Result<bool> {
        let (to_text, patience) = (to.to_string(), ["--send", "hello", "--milliseconds", "500"]);
        let outcome = match udp {
            true => {
                let output = world.tool("datagram")?.arg(&to_text).args(patience).output()?;
                output.json().pop().with_context(|| output.stderr)?["text"].clone()
            }
            false => connect(world, to, &patience)?["answer"].clone(),
        };
        Ok(outcome == "hello")
    };
    let await_answers = |what: &str, answered: bool| {
        for to in at(TO_NEAR) {
            for udp in [false, true] {
                // The agent looks for the pods' interfaces once they run.
                eventually(&format!("{what}: {to} (UDP: {udp}) to answer: {answered}"), || {
                    (is_answered(to, udp).ok()? == answered).then_some(())
                })
                .with_context(|| shop.logs())?;
            }
        }
        Ok::<_, anyhow::Error>(())
    };
    await_answers("isolated", false)?;
    // The node itself is let in as ever.
    for to in shop.cluster.pod("shop/near")?.addresses().sockets(PORT) {
        let outcome = connect(node, to, &["--send", "hello"])?;
        ensure!(outcome["answer"] == "hello", "the node to {to}: {outcome}\n{}", shop.logs());
    }
    // What the pod has asked for comes back by the same way.
    let client = shop.cluster.pod("shop/client")?;
    for to in at(TO_FAR) {
        shop.expect_answer("shop/client", to)?;
        let answer =
            client.tool("datagram")?.args([&to.to_string(), "--send", "hi"]).output()?.json();
        ensure!(answer[0]["text"] == "hi", "{to}: {answer:?}\n{}", shop.logs());
    }
    shop.cluster.apply("everybody.yaml", EVERYBODY)?;
    await_answers("open to everybody", true)
}

/// An API server may be such a pod: without it nobody would ever be known.
#[test]
fn a_pod_with_the_nodes_network_talks_before_it_is_known() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let ordinary = shop.cluster.add_pod(PodSpec::new("shop", "late", "node-a").unlisted())?;
    let spec = PodSpec::new("shop", "host", "node-a").host_network().unlisted();
    let host = shop.cluster.add_pod(spec)?;
    // As a container has them, its sandbox has mounts of its own.
    let sandbox = ["--mount", "sleep", "infinity"];
    let _sandboxes = [
        ordinary.run("unshare").args(sandbox).privileged().spawn()?,
        host.run("unshare").args(sandbox).privileged().spawn()?,
    ];
    eventually("the pod with the node's network to be answered", || {
        let outcome = shop.connect("shop/host", near).ok()?;
        (outcome["answer"] == "hello").then_some(())
    })
    .with_context(|| shop.logs())?;
    shop.expect_denied("shop/late", near)?;
    Ok(())
}
