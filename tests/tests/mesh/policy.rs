//! What policy allows and denies, how soon, and what becomes of established connections.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::{MeshOptions, PodSpec, eventually};

use crate::shop::{
    DENY_INGRESS, PORT, SOON, Shop, accepted, allow, builder, connect, now, open, open_with,
};

#[test]
fn what_no_rule_allows_is_refused_at_connect() -> Result<()> {
    let allow = allow("near", "far");
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*allow)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    for to in ["shop/near", "shop/far"] {
        for to in shop.cluster.pod(to)?.addresses().sockets(PORT) {
            let outcome = shop.expect_refused("shop/client", to)?;
            eprintln!("the refusal took {} µs", outcome["micros"]);
        }
    }
    for to in shop.cluster.pod("shop/far")?.addresses().sockets(PORT) {
        shop.expect_answer("shop/near", to)?;
    }
    ensure!(accepted(&servers[0]).is_empty(), "{:?}", accepted(&servers[0]));
    let near = shop.cluster.pod("shop/near")?.addresses().both();
    ensure!(accepted(&servers[1]) == near, "{:?}", accepted(&servers[1]));
    let flows = shop.flows("node-a", &["--verdict", "denied", "--to", "shop/near"])?;
    let rule = &flows[0]["rule"];
    ensure!(
        rule["name"] == "default-deny" && rule["file"].to_string().contains("deny.yaml"),
        "{:#}",
        flows[0]
    );
    expect_same_path(&shop, "shop/near", "direct")
}

/// What connect() has refused has the path that it would have taken, wherever one looks.
fn expect_same_path(shop: &Shop, to: &str, path: &str) -> Result<()> {
    let flows = shop.flows("node-a", &["--verdict", "denied", "--to", to])?;
    ensure!(flows.iter().all(|flow| flow["path"] == path), "{flows:#?}");
    let port = PORT.to_string();
    let words = ["policy", "explain", "shop/client", to, &port, "-o", "json"];
    let explained = shop.mesh.node("node-a")?.weft(words)?;
    let explained: serde_json::Value = serde_json::from_str(&explained.stdout)?;
    ensure!(explained["verdict"] == "denied" && explained["path"] == path, "{explained:#}");
    Ok(())
}

/// TCP sends what is not answered again; to who looks at flows it is one attempt.
#[test]
fn an_attempt_that_is_repeated_is_reported_once() -> Result<()> {
    let policies = [("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let world = shop.cluster.node("world")?;
    let near = shop.cluster.pod("shop/near")?;
    for to in near.addresses().sockets(PORT) {
        // Long enough for three SYNs: the second comes after one second, the third two later.
        let outcome = connect(world, to, &["--milliseconds", "3500"])?;
        ensure!(outcome["event"] == "failed", "{outcome}");
    }
    let packets = shop.mesh.node("node-a")?.status()?["counters"]["denied"].clone();
    ensure!(packets.as_u64() > Some(2), "{packets} packets were refused");
    let filter = ["--verdict", "denied", "--to", "shop/near"];
    let flows = shop.await_flows("node-a", &filter, 2)?;
    ensure!(flows.len() == 2, "{packets} packets: {flows:#?}");
    let outcome = connect(world, near.v4(PORT), &["--milliseconds", "100"])?;
    ensure!(outcome["event"] == "failed", "{outcome}");
    shop.await_flows("node-a", &filter, 3)?;
    Ok(())
}

/// How soon is printed.
#[test]
fn ten_thousand_connections_are_cut_and_others_lose_nothing() -> Result<()> {
    const COUNT: u64 = 10_000;
    const STEPS: &str = "forbidden connections";
    let options = MeshOptions::default().log("info,weft_agent::kernel::connections=debug");
    let Some(shop) = open_with(builder(), &options, &[])? else { return Ok(()) };
    let near = shop.cluster.pod("shop/near")?;
    let _echo = shop.serve("shop/near")?;
    let run = near.tool("serve")?.args(["--tcp", "8081", "--mode", "stall", "--quiet"]);
    let mut held = run.spawn()?;
    held.await_event(SOON, "listening")?;
    let client = shop.cluster.pod("shop/client")?;
    let run = client.tool("hold")?.arg(near.v4(8081).to_string());
    let mut hold = run.args(["--count", &COUNT.to_string(), "--until-cut"]).spawn()?;
    let holding = hold.await_event(SOON, "holding")?;
    ensure!(holding["held"] == COUNT, "{holding}");
    let mut forbidden = shop.probe("shop/client", near.v4(PORT), 60_000)?;
    let mut allowed = shop.probe("shop/near-2", near.v4(PORT), 3000)?;
    let written = now();
    shop.cluster.apply("edit.yaml", &allow("near", "near"))?;
    let cut = hold.await_event(SOON, "cut").with_context(|| shop.logs())?;
    ensure!(cut["count"] == COUNT, "{cut}");
    let end = forbidden.await_event(SOON, "ended").with_context(|| shop.logs())?;
    ensure!(!end["error"].is_null(), "it was not cut: {end}");
    let after = |at: &serde_json::Value| at.as_u64().map(|at| at.saturating_sub(written));
    eprintln!(
        "{COUNT} connections, µs after the write: the first cut {:?}, the last {:?}; the last \
         byte on one that is in use {:?}",
        after(&cut["first_at"]),
        after(&cut["last_at"]),
        after(&end["last_answer_at"]),
    );
    let steps = eventually("the agent says how long it took", || {
        let logs = shop.logs();
        let line = logs.lines().find(|line| line.contains(STEPS) && !line.contains("cut=0"))?;
        Some(line.to_owned())
    })?;
    eprintln!("{steps}");
    let end = allowed.await_event(SOON, "ended")?;
    ensure!(end["error"].is_null(), "{end}\n{}", shop.logs());
    eprintln!("another: {} messages, longest {} µs", end["messages"], end["longest_micros"]);
    Ok(())
}

#[test]
fn egress_is_judged_too() -> Result<()> {
    const ONLY_FAR: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: only-far
  namespace: shop
spec:
  endpointSelector:
    matchLabels:
      app: client
  egress:
  - toEndpoints:
    - matchLabels:
        app: far
    toPorts:
    - ports:
      - port: \"8080\"
        protocol: TCP
";
    let policies = [("egress.yaml", ONLY_FAR)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let world = shop.cluster.node("world")?;
    let _outside = crate::shop::serve(world, &[])?;
    shop.expect_answer("shop/client", shop.cluster.pod("shop/far")?.v4(PORT))?;
    shop.expect_denied("shop/client", shop.cluster.pod("shop/near")?.v4(PORT))?;
    shop.expect_denied("shop/client", shop.cluster.pod("shop/far")?.v4(PORT + 1))?;
    let flows = shop.flows("node-a", &["--verdict", "denied", "--to", "shop/far"])?;
    ensure!(flows.iter().all(|flow| flow["path"] == "tunnel"), "{flows:#?}");
    for to in world.public_addresses().sockets(PORT) {
        shop.expect_denied("shop/client", to)?;
    }
    let [service, _] = shop.cluster.service("shop/near")?.sockets(80);
    shop.expect_denied("shop/client", service)?;
    let [service, _] = shop.cluster.service("shop/far")?.sockets(80);
    shop.expect_answer("shop/client", service)?;
    // UDP to a port that only TCP may use.
    let client = shop.cluster.pod("shop/client")?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT).to_string();
    let output = client.tool("datagram")?.args([&far, "--milliseconds", "300"]).output()?;
    let answer = output.json().pop().context("pod-tool said nothing")?;
    ensure!(answer["event"] == "failed", "{answer}");
    Ok(())
}

#[test]
fn principals_are_told_apart_on_both_paths() -> Result<()> {
    const ONLY_CLIENT: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: only-client
  namespace: shop
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principals: [cluster.local/ns/shop/sa/client]
";
    let policies = [("principals.yaml", ONLY_CLIENT)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    for to in ["shop/near", "shop/far"] {
        for to in shop.cluster.pod(to)?.addresses().sockets(PORT) {
            shop.expect_answer("shop/client", to)?;
            expect_refused(&shop, "shop/near-2", to)?;
            // Unproven: no principal.
            let world = shop.cluster.node("world")?;
            let outcome = connect(world, to, &["--send", "hello", "--milliseconds", "500"])?;
            ensure!(outcome["answer"] != "hello", "world to {to}: {outcome}");
        }
    }
    Ok(())
}

/// STRICT: only who can prove an identity.
#[test]
fn strict_wants_proof() -> Result<()> {
    const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: istio-system
spec:
  mtls:
    mode: STRICT
";
    let policies = [("strict.yaml", STRICT)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    for to in ["shop/near", "shop/far"] {
        for to in shop.cluster.pod(to)?.addresses().sockets(PORT) {
            shop.expect_answer("shop/client", to)?;
            let world = shop.cluster.node("world")?;
            let outcome = connect(world, to, &["--send", "hello", "--milliseconds", "500"])?;
            ensure!(outcome["answer"] != "hello", "world to {to}: {outcome}");
        }
    }
    Ok(())
}

/// Refused by connect(), or, where only the other node knows, cut before an answer.
fn expect_refused(shop: &Shop, from: &str, to: std::net::SocketAddr) -> Result<()> {
    let outcome = shop.connect(from, to)?;
    ensure!(outcome["answer"] != "hello", "{from} to {to}: {outcome}\n{}", shop.logs());
    Ok(())
}

/// An edit acts on new connections and on established ones; those that it still allows lose
/// nothing. How soon is printed.
#[test]
fn an_edit_acts_on_new_and_established_connections() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let far = shop.cluster.pod("shop/far")?.v6(PORT);
    let mut forbidden =
        vec![shop.probe("shop/client", near, 60_000)?, shop.probe("shop/client", far, 60_000)?];
    let mut allowed =
        vec![shop.probe("shop/near-2", near, 3000)?, shop.probe("shop/near-2", far, 3000)?];
    let manifest = format!("{}---\n{}", allow("near", "near"), allow("near", "far"));
    let written = now();
    shop.cluster.apply("edit.yaml", &manifest)?;
    for probe in &mut forbidden {
        let end = probe.await_event(SOON, "ended").with_context(|| shop.logs())?;
        let last = end["last_answer_at"].as_u64().context("no last answer")?;
        let took = end["at"].as_u64().context("no end")?.saturating_sub(written);
        eprintln!("cut after {} µs; last answer after {} µs", took, last.saturating_sub(written));
        ensure!(!end["error"].is_null(), "it was not cut: {end}");
    }
    shop.expect_denied("shop/client", near)?;
    shop.expect_refused("shop/client", far)?;
    for probe in &mut allowed {
        let end = probe.await_event(SOON, "ended")?;
        ensure!(end["error"].is_null(), "{end}\n{}", shop.logs());
        eprintln!("others: {} messages, longest {} µs", end["messages"], end["longest_micros"]);
    }
    // And back.
    let written = now();
    shop.cluster.withdraw("edit.yaml")?;
    for to in [near, far] {
        let at = shop.await_verdict("shop/client", to, true)?;
        let took = at.saturating_sub(written);
        eprintln!("allowed again after {took} µs, with the start of a process");
    }
    Ok(())
}

/// New pods are denied from their first instant, known to the mesh or not yet.
#[test]
fn two_hundred_pods_that_start_at_once_send_not_one_byte() -> Result<()> {
    const PODS: usize = 200;
    let policies = [("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let arguments = ["--mode", "sink"];
    let servers =
        [shop.serve_with("shop/near", &arguments)?, shop.serve_with("shop/far", &arguments)?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT).to_string();
    let far = shop.cluster.pod("shop/far")?.v6(PORT).to_string();
    let spec = |number: usize| {
        PodSpec::new("shop", format!("new-{number}"), ["node-a", "node-b"][number % 2])
    };
    // They connect before the mesh has heard of them, while it does, and when it has.
    let pods = shop.cluster.add_pods((0..PODS).map(|number| spec(number).unlisted()))?;
    let start = || -> Result<Vec<_>> {
        let clients = pods.iter().map(|pod| {
            let run = pod.tool("connect")?.args([&near, &far]).args(["--send", "x"]);
            run.args(["--repeat", "25", "--milliseconds", "300"]).spawn()
        });
        clients.collect()
    };
    let mut clients = start()?;
    shop.cluster.list_pods(pods.iter().map(|pod| pod.key()))?;
    clients.extend(start()?);
    let mut outcomes = BTreeMap::<String, usize>::new();
    for client in &mut clients {
        client.wait(Duration::from_secs(120))?;
        for line in client.json() {
            ensure!(line["answer"].is_null(), "{line}");
            let outcome = format!("{} {}", line["event"], line["error"]["name"]);
            *outcomes.entry(outcome).or_default() += 1;
        }
    }
    eprintln!("{PODS} pods: {outcomes:?}");
    for server in &servers {
        let lines = server.json();
        ensure!(lines.iter().all(|line| line["event"] == "listening"), "{lines:?}");
    }
    Ok(())
}

/// Labels decide, and a change of a pod's labels is a change of policy.
#[test]
fn labels_of_a_pod_may_change() -> Result<()> {
    let allow = allow("friend", "far");
    let policies = [("allow.yaml", &*allow)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/far")?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    shop.expect_refused("shop/client", far)?;
    shop.cluster.relabel_pod("shop/client", &[("app", "friend")])?;
    shop.await_verdict("shop/client", far, true)?;
    let mut probe = shop.probe("shop/client", far, 60_000)?;
    shop.cluster.relabel_pod("shop/client", &[("app", "client")])?;
    let end = probe.await_event(SOON, "ended")?;
    ensure!(!end["error"].is_null(), "{end}");
    shop.expect_refused("shop/client", far)?;
    Ok(())
}

/// Traffic from outside is judged where it reaches the pod.
#[test]
fn blocks_of_addresses_are_told_apart() -> Result<()> {
    const FROM_WORLD: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: from-world
  namespace: shop
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - ipBlock:
        cidr: 203.0.113.0/24
    ports:
    - port: 8080
";
    let policies = [("world.yaml", FROM_WORLD)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let world = shop.cluster.node("world")?;
    for to in ["shop/near", "shop/far"] {
        let [v4, v6] = shop.cluster.pod(to)?.addresses().sockets(PORT);
        let outcome = connect(world, v4, &["--send", "hello"])?;
        ensure!(outcome["answer"] == "hello", "{outcome}\n{}", shop.logs());
        let outcome = connect(world, v6, &["--send", "hello", "--milliseconds", "500"])?;
        ensure!(outcome["event"] == "failed", "{outcome}");
        shop.expect_refused("shop/client", v4)?;
    }
    Ok(())
}
