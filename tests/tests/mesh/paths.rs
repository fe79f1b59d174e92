//! Which path a connection takes, and what both ends see of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use weft_tests::{Host, NamespaceSpec, PodSpec};

use crate::shop::{PORT, Shop, accepted, builder, connect, open, open_with, serve};

/// Connects over both families, and compares what either end sees.
fn expect_path(shop: &Shop, to: &str, path: &str, node: &str) -> Result<()> {
    let server = shop.serve(to)?;
    let (client, target) = (shop.cluster.pod("shop/client")?, shop.cluster.pod(to)?);
    for to in target.addresses().sockets(PORT) {
        let outcome = shop.expect_answer("shop/client", to)?;
        ensure!(outcome["peer"] == to.to_string(), "the client sees {}", outcome["peer"]);
    }
    let seen = accepted(&server);
    ensure!(seen == client.addresses().both(), "the server saw {seen:?}");
    for line in server.json().iter().filter(|line| line["event"] == "accept") {
        ensure!(line["peer"] == line["getpeername"], "{line}");
    }
    for node in ["node-a", node] {
        let flows = shop.flows(node, &["--from", "shop/client", "--to", to])?;
        ensure!(flows.iter().all(|flow| flow["path"] == path), "{flows:#?}");
    }
    // Where the connection reaches its pod, who the client is has been proven.
    let flows = shop.flows(node, &["--from", "shop/client", "--to", to])?;
    let identity = flows[0]["source"]["identity"].as_str().unwrap_or_default();
    ensure!(identity.ends_with("/ns/shop/sa/client"), "{:#}", flows[0]);
    Ok(())
}

#[test]
fn same_node_goes_directly() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    expect_path(&shop, "shop/near", "direct", "node-a")
}

#[test]
fn across_nodes_goes_through_the_tunnel() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    expect_path(&shop, "shop/far", "tunnel", "node-b")
}

/// Java and Go dial IPv4 by IPv6 sockets, and listen on both families by one.
#[test]
fn ipv4_on_ipv6_sockets_is_ipv4() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    for to in ["shop/near", "shop/far"] {
        let server = shop.serve_with(to, &["--dual"])?;
        let to = shop.cluster.pod(to)?.v4(PORT);
        let outcome = shop.connect_with("shop/client", to, &["--mapped", "--send", "hello"])?;
        ensure!(outcome["answer"] == "hello", "{outcome}\n{}", shop.logs());
        let peer: SocketAddr = outcome["peer"].as_str().context("no peer")?.parse()?;
        ensure!(peer.is_ipv6() && peer.ip().to_canonical() == to.ip(), "the client sees {peer}");
        let client = IpAddr::from(shop.cluster.pod("shop/client")?.addresses().ipv4);
        ensure!(accepted(&server) == [client], "{:?}", accepted(&server));
    }
    Ok(())
}

/// Packets that the node's stack has forwarded, of IPv4 and IPv6.
fn forwarded(node: &Host) -> Result<u64> {
    let text = node.run("cat").args(["/proc/net/snmp", "/proc/net/snmp6"]).output()?.stdout;
    let mut v4 = text.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = v4.next().zip(v4.next()).context("no statistics of IPv4")?;
    let value = |(name, value)| (name == "ForwDatagrams").then_some(value);
    let v4 = names.split_whitespace().zip(values.split_whitespace()).find_map(value);
    let v6 = text.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"));
    let number = |value: Option<&str>| value.and_then(|value| value.trim().parse::<u64>().ok());
    Ok(number(v4).context("no ForwDatagrams")? + number(v6).context("no Ip6OutForwDatagrams")?)
}

/// The node's stack sees a connection begin, and no more of it.
#[test]
fn frames_of_one_node_go_straight() -> Result<()> {
    const CONNECTIONS: u64 = 10;
    let Some(shop) = open()? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let node = shop.cluster.node("node-a")?;
    for to in shop.cluster.pod("shop/near")?.addresses().sockets(PORT) {
        // The agent looks for the pods' interfaces once they run.
        weft_tests::eventually("only SYNs and their answers are forwarded", || {
            let before = forwarded(node).ok()?;
            for _ in 0..CONNECTIONS {
                shop.expect_answer("shop/client", to).ok()?;
            }
            (forwarded(node).ok()? - before == 2 * CONNECTIONS).then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn services_are_balanced_at_connect() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/near-2")?];
    for to in shop.cluster.service("shop/near")?.sockets(80) {
        for _ in 0..20 {
            let outcome = shop.expect_answer("shop/client", to)?;
            ensure!(outcome["peer"] == to.to_string(), "the client sees {}", outcome["peer"]);
        }
    }
    let counts = servers.each_ref().map(|server| accepted(server).len());
    ensure!(counts[0] + counts[1] == 40 && counts.iter().all(|count| *count > 4), "{counts:?}");
    let _far = shop.serve("shop/far")?;
    for to in shop.cluster.service("shop/far")?.sockets(80) {
        shop.expect_answer("shop/client", to)?;
    }
    Ok(())
}

#[test]
fn services_of_datagrams_answer_as_the_service() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/near-2")?, shop.serve("shop/far")?];
    let client = shop.cluster.pod("shop/client")?;
    for service in ["shop/near", "shop/far"] {
        for to in shop.cluster.service(service)?.sockets(53) {
            for more in [&[][..], &["--connected"], &["--mapped"]] {
                let output = client.tool("datagram")?.arg(to.to_string()).args(more).output()?;
                let answer = output.json().pop().context("pod-tool said nothing")?;
                ensure!(answer["text"] == "hello", "{to} {more:?}: {answer}\n{}", shop.logs());
                let peer: SocketAddr = answer["peer"].as_str().context("no peer")?.parse()?;
                let canonical = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                ensure!(canonical == to, "{to} {more:?} was answered by {peer}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_client_stays_with_its_backend_where_the_service_says_so() -> Result<()> {
    let service = weft_tests::ServiceSpec::new("shop", "sticky")
        .selector("app", "near")
        .port(80, PORT)
        .client_ip_affinity(600);
    let Some(shop) = open_with(builder().service(service), &Default::default(), &[])? else {
        return Ok(());
    };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/near-2")?];
    let [to, _] = shop.cluster.service("shop/sticky")?.sockets(80);
    for _ in 0..20 {
        shop.expect_answer("shop/client", to)?;
    }
    let mut counts = servers.each_ref().map(|server| accepted(server).len());
    counts.sort_unstable();
    ensure!(counts == [0, 20], "{counts:?}");
    Ok(())
}

/// A service without endpoints refuses at once, as kube-proxy does.
#[test]
fn a_service_without_endpoints_refuses() -> Result<()> {
    let service =
        weft_tests::ServiceSpec::new("shop", "nobody").selector("app", "nobody").port(80, PORT);
    let Some(shop) = open_with(builder().service(service), &Default::default(), &[])? else {
        return Ok(());
    };
    let [to, _] = shop.cluster.service("shop/nobody")?.sockets(80);
    let outcome = shop.connect("shop/client", to)?;
    ensure!(outcome["event"] == "failed", "{outcome}");
    ensure!(outcome["error"]["name"] != "timeout", "{outcome}");
    Ok(())
}

#[test]
fn what_is_outside_is_left_alone() -> Result<()> {
    let bare = NamespaceSpec::new("bare");
    let pod = PodSpec::new("bare", "client", "node-a");
    let Some(shop) = open_with(builder().namespace(bare).pod(pod), &Default::default(), &[])?
    else {
        return Ok(());
    };
    let world = shop.cluster.node("world")?;
    let outside = serve(world, &[])?;
    for to in world.public_addresses().sockets(PORT) {
        shop.expect_answer("shop/client", to)?;
        shop.expect_answer("bare/client", to)?;
    }
    let expected = [shop.cluster.pod("shop/client")?, shop.cluster.pod("bare/client")?];
    let [v4, v6] =
        [0, 1].map(|family| expected.each_ref().map(|pod| pod.addresses().both()[family]));
    ensure!(accepted(&outside) == [v4, v6].concat(), "{:?}", accepted(&outside));

    let inside = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    for pod in ["shop/near", "shop/far"] {
        for to in shop.cluster.pod(pod)?.addresses().sockets(PORT) {
            let outcome = connect(world, to, &["--send", "hello"])?;
            ensure!(outcome["answer"] == "hello", "world to {to}: {outcome}");
            shop.expect_answer("bare/client", to)?;
        }
    }
    for server in &inside {
        let from = accepted(server);
        ensure!(from[0] == world.public_addresses().both()[0], "{from:?}");
        ensure!(from[1] == v4[1], "{from:?}");
    }
    shop.await_flows("node-a", &["--from", "shop/client", "--path", "untouched"], 2)?;
    Ok(())
}

/// The kubelet's probes come from the node itself.
#[test]
fn the_node_reaches_its_pods() -> Result<()> {
    let policies = [("deny.yaml", crate::shop::DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let node = shop.cluster.node("node-a")?;
    for to in shop.cluster.pod("shop/near")?.addresses().sockets(PORT) {
        let outcome = connect(node, to, &["--send", "hello"])?;
        ensure!(outcome["answer"] == "hello", "the node to {to}: {outcome}\n{}", shop.logs());
        shop.expect_denied("shop/client", to)?;
    }
    Ok(())
}

#[test]
fn a_pod_reaches_itself() -> Result<()> {
    let policies = [("deny.yaml", crate::shop::DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    for to in shop.cluster.pod("shop/near")?.addresses().sockets(PORT) {
        shop.expect_answer("shop/near", to)?;
    }
    shop.expect_answer("shop/near", SocketAddr::from(([127, 0, 0, 1], PORT)))?;
    Ok(())
}

/// Pings every server from the client, over both families; returns who answered in time.
fn ping_all(shop: &Shop, milliseconds: &str) -> Result<Vec<(IpAddr, bool)>> {
    let client = shop.cluster.pod("shop/client")?;
    let targets = [shop.cluster.pod("shop/near")?, shop.cluster.pod("shop/far")?];
    let ping = |to: IpAddr| -> Result<_> {
        let run = client.tool("ping")?.arg(to.to_string()).args(["--milliseconds", milliseconds]);
        let answer = run.output()?.json().pop().context("pod-tool said nothing")?;
        Ok((to, answer["event"] == "reply"))
    };
    targets.iter().flat_map(|pod| pod.addresses().both()).map(ping).collect()
}

#[test]
fn pings_are_judged() -> Result<()> {
    let policies = [("deny.yaml", crate::shop::DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let answers = ping_all(&shop, "500")?;
    ensure!(answers.iter().all(|(_, answered)| !answered), "{answers:?}\n{}", shop.logs());
    Ok(())
}

/// Those that are under way are judged anew when policy changes.
#[test]
fn pings_pass_until_policy_forbids_them() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let answers = ping_all(&shop, "20000")?;
    ensure!(answers.iter().all(|(_, answered)| *answered), "{answers:?}\n{}", shop.logs());
    shop.cluster.apply("deny.yaml", crate::shop::DENY_INGRESS)?;
    // Each node has its own agent.
    for pod in ["shop/near", "shop/far"] {
        shop.await_verdict("shop/client", shop.cluster.pod(pod)?.v4(PORT), false)?;
    }
    let answers = ping_all(&shop, "500")?;
    ensure!(answers.iter().all(|(_, answered)| !answered), "{answers:?}\n{}", shop.logs());
    Ok(())
}

/// With as little on the links as IPv6 allows.
#[test]
fn a_small_mtu_is_enough() -> Result<()> {
    let Some(shop) = open_with(builder().mtu(1280), &Default::default(), &[])? else {
        return Ok(());
    };
    for to in ["shop/near", "shop/far"] {
        let server = shop.serve_with(to, &["--mode", "words", "--quiet"])?;
        let client = shop.cluster.pod("shop/client")?;
        let to = shop.cluster.pod(to)?.v6(PORT);
        let sent = client.tool("words")?.arg(to.to_string()).args(["--kib", "8192"]).output()?;
        ensure!(sent.status.success(), "{sent:?}");
        let words = crate::applications::words(server)?;
        ensure!(words["in_order"] == true, "{words}");
    }
    Ok(())
}

/// A pod that has gone is not in the way of the next with its address.
#[test]
fn pods_come_and_go() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    for round in 0..5 {
        let spec = PodSpec::new("shop", format!("short-{round}"), "node-b").host_number(77);
        let pod = shop.cluster.add_pod(spec)?;
        let server = serve(&pod, &[])?;
        shop.await_verdict("shop/client", pod.v4(PORT), true)?;
        drop(server);
        shop.cluster.remove_pod(&pod.key())?;
    }
    Ok(())
}
