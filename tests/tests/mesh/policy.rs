//! What policy allows and denies, how soon, and what becomes of established connections.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::PodSpec;

use crate::shop::{
    DENY_INGRESS, PORT, SOON, Shop, accepted, allow, builder, connect, now, open, open_with,
};

/// From the write of a manifest until it acts.
const EFFECT_WITHIN_MICROS: u64 = 100_000;

#[test]
fn what_no_rule_allows_is_refused_at_connect() -> Result<()> {
    let allow = allow("near", "far");
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*allow)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    for to in ["shop/near", "shop/far"] {
        for to in shop.cluster.pod(to)?.addresses().sockets(PORT) {
            let outcome = shop.expect_refused("shop/client", to)?;
            let micros = outcome["micros"].as_u64().context("no time")?;
            ensure!(micros < 50_000, "the refusal took {micros} µs");
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

/// An edit acts within 100 ms of its write, on new connections and on established ones; those
/// that it still allows lose nothing.
#[test]
fn an_edit_acts_at_once() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let far = shop.cluster.pod("shop/far")?.v6(PORT);
    let mut forbidden =
        vec![shop.probe("shop/client", near, 10_000)?, shop.probe("shop/client", far, 10_000)?];
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
        ensure!(last.saturating_sub(written) < EFFECT_WITHIN_MICROS, "{end}, written {written}");
        ensure!(took < EFFECT_WITHIN_MICROS, "{end}, written {written}");
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
        ensure!(took < 5 * EFFECT_WITHIN_MICROS, "{took} µs");
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
    let mut probe = shop.probe("shop/client", far, 10_000)?;
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
