//! An agent that dies and comes back, under load; and a proxy.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{PodSpec, Process, eventually};

use crate::shop::{DENY_INGRESS, PORT, SOON, Shop, accepted, allow, builder, now, open, open_with};

const DENY_EGRESS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: no-egress
  namespace: shop
spec:
  podSelector:
    matchLabels: {app: client}
  policyTypes: [Egress]
";

/// The ids of the programs that are attached at the pods' root of a node.
fn attached(shop: &Shop, node: &str) -> Result<Vec<(String, u64)>> {
    let root = shop.cluster.node(node)?.branch().join("kubepods.slice");
    let output = Command::new("bpftool").args(["-j", "cgroup", "show"]).arg(root).output()?;
    let programs: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let mut programs: Vec<_> = programs
        .iter()
        .map(|program| {
            let name = program["attach_type"].to_string() + &program["name"].to_string();
            (name, program["id"].as_u64().unwrap_or_default())
        })
        .collect();
    programs.sort();
    Ok(programs)
}

#[test]
fn traffic_and_policy_outlive_the_agent() -> Result<()> {
    let allow_near = allow("client", "near");
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*allow_near)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    let before = attached(&shop, "node-a")?;
    ensure!(before.len() >= 8, "{before:?}");
    let node = shop.mesh.node("node-a")?;
    let mut probe = shop.probe("shop/client", near, 6000)?;

    node.kill_agent();
    for _ in 0..20 {
        shop.expect_answer("shop/client", near)?;
        shop.expect_refused("shop/client", far)?;
    }
    ensure!(attached(&shop, "node-a")?.len() == before.len());

    node.start_agent()?;
    node.await_ready()?;
    let after = attached(&shop, "node-a")?;
    let names = |programs: &[(String, u64)]| -> Vec<String> {
        programs.iter().map(|(name, _)| name.clone()).collect()
    };
    ensure!(names(&after) == names(&before), "{before:?} became {after:?}");
    shop.expect_answer("shop/client", near)?;
    shop.expect_refused("shop/client", far)?;

    let written = now();
    shop.cluster.apply("more.yaml", &allow("client", "far"))?;
    let took = shop.await_verdict("shop/client", far, true)?.saturating_sub(written);
    eprintln!("after the restart an edit acted within {took} µs");

    let end = probe.await_event(SOON, "ended")?;
    ensure!(end["error"].is_null(), "{end}\n{}", shop.logs());
    eprintln!("direct: {} messages, longest {} µs", end["messages"], end["longest_micros"]);
    Ok(())
}

/// The agent is not on the way of tunnels either.
#[test]
fn tunnels_outlive_the_agent() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _server = shop.serve("shop/far")?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    let mut probe = shop.probe("shop/client", far, 5000)?;
    for node in shop.mesh.nodes() {
        node.kill_agent();
    }
    for _ in 0..10 {
        shop.expect_answer("shop/client", far)?;
    }
    for node in shop.mesh.nodes() {
        node.start_agent()?;
        node.await_ready()?;
    }
    shop.expect_answer("shop/client", far)?;
    let end = probe.await_event(SOON, "ended")?;
    ensure!(end["error"].is_null(), "{end}\n{}", shop.logs());
    Ok(())
}

/// Nothing is left in the kernel, and what is accelerated goes on over TCP.
#[test]
fn what_is_open_goes_on_without_weft() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let mut server = shop.serve_with("shop/near", &["--mode", "trade", "--quiet"])?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let (reader, writer) = std::io::pipe()?;
    let client = shop.cluster.pod("shop/client")?;
    let run = client.tool("trade")?.arg(near.to_string());
    let mut client = run.stdin(File::from(OwnedFd::from(reader))).spawn()?;
    client.await_event(SOON, "trading")?;
    let node = shop.mesh.node("node-a")?;
    eventually("words to be redirected", || {
        node.status().ok()?["counters"]["redirected"].as_u64().filter(|count| *count > 100)
    })?;
    node.kill_proxy();
    node.kill_agent();
    let pins = node.pin_directory().display().to_string();
    let removed = node.weft(["uninstall", "--node", "-o", "json", "--pin-dir", &*pins])?;
    ensure!(removed.status.success(), "{removed:?}");
    let report: Value = serde_json::from_str(&removed.stdout)?;
    ensure!(report["left"] == json!([]) && report["found"]["programs"] != 0, "{report}");

    ensure!(client.is_running(), "{}", client.tail());
    drop(writer);
    let ends = [client.await_event(SOON, "traded")?, server.await_event(SOON, "traded")?];
    ensure!(ends.iter().all(|end| end["in_order"] == true), "{ends:?}");
    ensure!(ends[0]["sent"] == ends[1]["words"], "{ends:?}");
    ensure!(ends[1]["sent"] == ends[0]["words"], "{ends:?}");
    Ok(())
}

/// Policy comes back with the root of the pods' cgroups, which takes the programs along when it
/// goes.
#[test]
fn a_pods_root_that_is_made_anew_has_its_policy() -> Result<()> {
    let allow_web = allow("visitor", "web");
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*allow_web)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let node = shop.mesh.node("node-b")?;
    let problems = || Some(node.status().ok()?["problems"].to_string());
    let root = shop.cluster.node("node-b")?.branch().join("kubepods.slice");
    shop.cluster.remove_pod("shop/far")?;
    for class in fs::read_dir(&root)?.flatten() {
        if class.file_type()?.is_dir() {
            fs::remove_dir(class.path())?;
        }
    }
    fs::remove_dir(&root)?;
    eventually("the agent to tell", || {
        problems().filter(|text| text.contains("cannot be watched"))
    })
    .with_context(|| node.logs())?;
    for name in ["web", "visitor", "stranger"] {
        let spec = PodSpec::new("shop", name, "node-b").label("app", name).service_account(name);
        shop.cluster.add_pod(spec)?;
    }
    eventually("it to be well again", || problems().filter(|text| text == "[]"))
        .with_context(|| node.logs())?;
    let _server = shop.serve("shop/web")?;
    let web = shop.cluster.pod("shop/web")?.v4(PORT);
    shop.await_verdict("shop/visitor", web, true)?;
    shop.expect_denied("shop/stranger", web)?;
    Ok(())
}

/// What was taken away while the agent was down is gone when it is back.
#[test]
fn an_agent_that_comes_back_takes_what_has_changed() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let mut probe = shop.probe("shop/client", near, 120_000)?;
    let node = shop.mesh.node("node-a")?;
    node.kill_agent();
    shop.cluster.apply("deny.yaml", DENY_INGRESS)?;
    shop.expect_answer("shop/client", near)?;
    node.start_agent()?;
    node.await_ready()?;
    shop.expect_denied("shop/client", near)?;
    let end = probe.await_event(SOON, "ended")?;
    ensure!(!end["error"].is_null(), "{end}");
    Ok(())
}

/// Connections for which a node's proxy is away wait for the next one, and go nowhere else; where none
/// comes, they are refused.
#[test]
fn a_proxy_that_dies_is_replaced() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/far")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    shop.expect_answer("shop/client", far)?;
    let dial = || dial_patiently(&shop, "shop/client", far);
    for node in shop.mesh.nodes() {
        node.kill_proxy();
        let mut waiting = dial()?;
        shop.expect_answer("shop/client", near)?;
        ensure!(waiting.json().is_empty(), "{}", waiting.stdout());
        node.start_proxy()?;
        let outcome = waiting.await_event(SOON, "connected")?;
        ensure!(outcome["answer"] == "hello", "{outcome}\n{}", shop.logs());
        shop.expect_answer("shop/client", far)?;
    }
    shop.mesh.node("node-a")?.kill_proxy();
    let outcome = dial()?.await_event(SOON, "failed")?;
    ensure!(outcome["error"]["name"] == "ECONNREFUSED", "{outcome}");
    Ok(())
}

/// A connection that waits for the node's proxy is forbidden like one that stands.
#[test]
fn what_waits_for_a_proxy_may_be_forbidden_meanwhile() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let server = shop.serve("shop/far")?;
    let far = shop.cluster.pod("shop/far")?.v4(PORT);
    shop.expect_answer("shop/client", far)?;
    let node = shop.mesh.node("node-a")?;
    node.kill_proxy();
    let mut waiting = dial_patiently(&shop, "shop/client", far)?;
    let waits = ["--from", "shop/client", "--to", "shop/far"];
    shop.await_flows("node-a", &waits, 3)?;
    ensure!(waiting.json().is_empty(), "{}", waiting.stdout());
    shop.cluster.apply("deny.yaml", DENY_EGRESS)?;
    let outcome = waiting.await_event(SOON, "failed")?;
    ensure!(outcome["error"]["name"] != "ETIMEDOUT", "{outcome}");
    node.start_proxy()?;
    node.await_ready()?;
    shop.expect_denied("shop/client", far)?;
    ensure!(accepted(&server).len() == 1, "{}", server.stdout());
    Ok(())
}

/// Connects as a client that waits long.
fn dial_patiently(shop: &Shop, from: &str, to: SocketAddr) -> Result<Process> {
    let pod = shop.cluster.pod(from)?;
    let tool = pod.tool("connect")?.arg(to.to_string());
    tool.args(["--send", "hello", "--milliseconds", "60000"]).spawn()
}

/// While one agent's tables take the place of another's, no connection is decided otherwise than
/// before and after: none that is allowed is refused, none that is denied gets through.
#[test]
fn a_new_agent_takes_over_without_a_moment_in_between() -> Result<()> {
    let allow_near = allow("client", "near");
    let policies = [("deny.yaml", DENY_INGRESS), ("allow.yaml", &*allow_near)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _servers = [shop.serve("shop/near")?, shop.serve("shop/client")?];
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    let client = shop.cluster.pod("shop/client")?.v4(PORT);
    shop.expect_answer("shop/client", near)?;
    shop.expect_denied("shop/near", client)?;
    let dial = |from: &str, to: SocketAddr| {
        let pod = shop.cluster.pod(from)?;
        let tool = pod.tool("connect")?.arg(to.to_string());
        tool.args(["--send", "hello", "--repeat", "1000000"]).spawn()
    };
    let allowed = dial("shop/client", near)?;
    let denied = dial("shop/near", client)?;
    let node = shop.mesh.node("node-a")?;
    for _ in 0..3 {
        node.kill_agent();
        node.start_agent()?;
        node.await_ready()?;
    }
    let (allowed, denied) = (allowed.json(), denied.json());
    ensure!(allowed.len() > 100 && denied.len() > 100, "{} {}", allowed.len(), denied.len());
    let refused = allowed.iter().find(|outcome| outcome["answer"] != "hello");
    ensure!(refused.is_none(), "{refused:?} of {}\n{}", allowed.len(), shop.logs());
    let passed = denied.iter().find(|outcome| outcome["error"]["name"] != "EPERM");
    ensure!(passed.is_none(), "{passed:?} of {}\n{}", denied.len(), shop.logs());
    eprintln!("{} connections answered, {} refused", allowed.len(), denied.len());
    Ok(())
}
