//! What applications do with their sockets, on every path.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::{MeshOptions, PodSpec, Process};

use crate::shop::{PORT, SOON, Shop, accepted, builder, open, open_with};

const LONG: Duration = Duration::from_secs(120);

/// The addresses of a server on the same node and of one on the other, over both families.
fn targets(shop: &Shop) -> Result<[(&'static str, SocketAddr); 4]> {
    let [near, far] = [shop.cluster.pod("shop/near")?, shop.cluster.pod("shop/far")?];
    Ok([
        ("direct", near.v4(PORT)),
        ("direct", near.v6(PORT)),
        ("tunnel", far.v4(PORT)),
        ("tunnel", far.v6(PORT)),
    ])
}

fn both(shop: &Shop, arguments: &[&str]) -> Result<[Process; 2]> {
    Ok([shop.serve_with("shop/near", arguments)?, shop.serve_with("shop/far", arguments)?])
}

/// What a server that checks words says.
pub fn words(mut server: Process) -> Result<Value> {
    server.await_event(LONG, "words")
}

/// A reader that stalls makes the path change back and forth; the order holds.
#[test]
fn numbered_words_arrive_in_order_through_readers_that_stall() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let client = shop.cluster.pod("shop/client")?;
    for (path, to) in targets(&shop)? {
        let pod = if path == "direct" { "shop/near" } else { "shop/far" };
        let server = shop.serve_with(pod, &["--mode", "words", "--quiet"])?;
        let run = client.tool("words")?.arg(to.to_string()).args(["--kib", "98304"]);
        let sent = run.limit(LONG).output()?;
        ensure!(sent.status.success(), "{path} {to}: {sent:?}\n{}", shop.logs());
        let words = words(server)?;
        ensure!(words["in_order"] == true, "{path} {to}: {words}");
        ensure!(words["words"] == (96 << 20) / 8, "{path} {to}: {words}");
    }
    let status = shop.mesh.node("node-a")?.status()?;
    eprintln!("counters: {}", status["counters"]);
    Ok(())
}

/// A reader that is told of new bytes once, and takes a short read to mean that there are no
/// more: tokio, and everything that is built on it.
#[test]
fn readers_that_trust_a_short_read_get_everything() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let client = shop.cluster.pod("shop/client")?;
    for (path, to) in targets(&shop)? {
        let pod = if path == "direct" { "shop/near" } else { "shop/far" };
        let server = shop.serve_with(pod, &["--mode", "edge-words", "--quiet"])?;
        // About as much as a reader may leave unread before the rest has to wait in TCP.
        for kib in (64..400).step_by(12) {
            let kib = kib.to_string();
            let run = client.tool("words")?.arg(to.to_string()).args(["--kib", &kib]);
            let sent = run.limit(SOON).output();
            let sent = sent.with_context(|| format!("{path} {to} {kib} KiB"))?;
            ensure!(sent.status.success(), "{path} {to} {kib} KiB: {sent:?}");
        }
        let lines = server.json();
        ensure!(lines.iter().all(|line| line["in_order"] != false), "{path} {to}: {lines:?}");
    }
    Ok(())
}

/// The agent wakes such readers; one that comes back wakes those that sleep.
#[test]
fn the_next_agent_wakes_readers_that_trusted_a_short_read() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let client = shop.cluster.pod("shop/client")?;
    let server = shop.serve_with("shop/near", &["--mode", "edge-words", "--quiet"])?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT).to_string();
    let node = shop.mesh.node("node-a")?;
    node.kill_agent();
    let mut asleep = Vec::new();
    for kib in (64..400).step_by(12) {
        let mut run = client.tool("words")?.args([&near, "--kib", &kib.to_string()]).spawn()?;
        // Far longer than one takes that is not asleep.
        if run.wait(Duration::from_secs(1)).is_err() {
            asleep.push(run);
        }
    }
    eprintln!("asleep without an agent: {}", asleep.len());
    node.start_agent()?;
    node.await_ready()?;
    for mut run in asleep {
        ensure!(run.wait(SOON)?.success(), "{}", run.stderr());
    }
    let lines = server.json();
    ensure!(lines.iter().all(|line| line["in_order"] != false), "{lines:?}");
    Ok(())
}

/// How much a writer may push to a peer that never reads is bounded.
#[test]
fn a_writer_to_a_peer_that_never_reads_is_held_back() -> Result<()> {
    const BOUND: u64 = 64 << 20;
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = both(&shop, &["--mode", "stall"])?;
    let client = shop.cluster.pod("shop/client")?;
    for (path, to) in targets(&shop)? {
        let output = client.tool("fill")?.arg(to.to_string()).limit(LONG).output()?;
        let filled = output.json().pop().with_context(|| output.stderr.clone())?;
        eprintln!("{path} {to}: {} bytes to a peer that never reads", filled["bytes"]);
        ensure!(filled["held_back"] == true, "{path} {to}: {filled}");
        let bytes = filled["bytes"].as_u64().context("no count")?;
        ensure!(bytes < BOUND, "{path} {to}: {filled}");
    }
    Ok(())
}

/// Uses of sockets that must work wherever the connection goes.
const WAYS: [&str; 8] =
    ["peek", "fionread", "linger", "epoll", "io-uring", "low-water-mark", "urgent", "timeout"];
/// What the kernel does otherwise for sockets that it has joined below TCP (Linux 6.18,
/// `net/ipv4/tcp_bpf.c`): splice(2) does not see redirected bytes, MSG_WAITALL returns with what
/// there is, and a thread that is blocked in recv(2) while another one sends or shuts down may
/// get EAGAIN (half-close, sendfile). Pods that need them turn acceleration off.
const WITHOUT_ACCELERATION: [&str; 4] = ["splice", "flags", "half-close", "sendfile"];

fn without_acceleration() -> MeshOptions {
    MeshOptions::default().agent_argument("--acceleration").agent_argument("off")
}

/// Tries uses of sockets on every path; returns what went otherwise than TCP has it.
fn try_ways(shop: &Shop, ways: &[&str]) -> Result<Vec<String>> {
    let _servers = both(shop, &["--quiet"])?;
    let client = shop.cluster.pod("shop/client")?;
    let mut failures = Vec::new();
    for (path, to) in targets(shop)? {
        for way in ways {
            let output = client.tool("peculiar")?.args([way, &*to.to_string()]).output()?;
            let tried = output.json().pop();
            if !tried.as_ref().is_some_and(|tried| tried["error"].is_null()) {
                failures.push(format!("{path} {to} {way}: {tried:?} {}", output.stderr));
            }
        }
    }
    Ok(failures)
}

#[test]
fn uncommon_uses_of_sockets_work() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let failures = try_ways(&shop, &WAYS)?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Where a pod has turned acceleration off, everything is as TCP has it.
#[test]
fn without_acceleration_every_use_of_sockets_works() -> Result<()> {
    let Some(shop) = open_with(builder(), &without_acceleration(), &[])? else { return Ok(()) };
    let failures = try_ways(&shop, &[&WAYS[..], &WITHOUT_ACCELERATION].concat())?;
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn a_pod_may_turn_acceleration_off() -> Result<()> {
    let pod = PodSpec::new("shop", "plain", "node-a").annotation("weft.dev/accelerate", "false");
    let Some(shop) = open_with(builder().pod(pod), &MeshOptions::default(), &[])? else {
        return Ok(());
    };
    let _servers = both(&shop, &["--quiet"])?;
    let plain = shop.cluster.pod("shop/plain")?;
    for (path, to) in targets(&shop)? {
        for way in WITHOUT_ACCELERATION {
            let output = plain.tool("peculiar")?.args([way, &*to.to_string()]).output()?;
            let tried = output.json().pop().with_context(|| output.stderr.clone())?;
            ensure!(tried["error"].is_null(), "{path} {to}: {tried}");
        }
    }
    Ok(())
}

/// A client that has said all it has to say, and blocks in a read until the answer comes.
#[test]
fn a_client_that_has_half_closed_waits_for_its_answer() -> Result<()> {
    const REPEAT: &str = "5";
    let Some(shop) = open()? else { return Ok(()) };
    let _servers = both(&shop, &["--mode", "late", "--quiet"])?;
    let client = shop.cluster.pod("shop/client")?;
    for (path, to) in targets(&shop)? {
        let arguments = [&to.to_string(), "--send", "hello", "--read", "--repeat", REPEAT];
        let run = || client.tool("connect")?.args(arguments).spawn();
        let runs = (0..10).map(|_| run()).collect::<Result<Vec<_>>>()?;
        for mut run in runs {
            ensure!(run.wait(LONG)?.success(), "{}", run.stderr());
            let outcomes = run.json();
            ensure!(outcomes.len().to_string() == REPEAT, "{path} {to}: {outcomes:?}");
            let answered = outcomes.iter().all(|outcome| outcome["answer"] == "hello");
            ensure!(answered, "{path} {to}: {outcomes:?}");
        }
    }
    Ok(())
}

/// Go listens with MPTCP by default, and a client without it falls back to TCP.
#[test]
fn mptcp_listeners_are_served() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    let servers = both(&shop, &["--mptcp", "--dual"])?;
    for (path, to) in targets(&shop)? {
        for more in [&["--send", "hello"][..], &["--send", "hello", "--mptcp"]] {
            let outcome = shop.connect_with("shop/client", to, more)?;
            ensure!(
                outcome["answer"] == "hello",
                "{path} {to} {more:?}: {outcome}\n{}",
                shop.logs()
            );
        }
    }
    let client = shop.cluster.pod("shop/client")?.addresses().both();
    for server in &servers {
        let peers = accepted(server);
        ensure!(peers.iter().all(|peer| client.contains(peer)), "{peers:?}");
    }
    Ok(())
}

/// A connection whose server dies ends for the client.
#[test]
fn a_peer_that_dies_is_seen_to_die() -> Result<()> {
    let Some(shop) = open()? else { return Ok(()) };
    for (path, to) in targets(&shop)? {
        let pod = if path == "direct" { "shop/near" } else { "shop/far" };
        let mut server = shop.serve(pod)?;
        let mut probe = shop.probe("shop/client", to, 60_000)?;
        server.kill();
        let end = probe.await_event(SOON, "ended")?;
        ensure!(!end["error"].is_null(), "{path} {to}: {end}");
    }
    Ok(())
}

/// A thousand connections of random sizes and orders of close, compared byte by byte.
fn exchange(path: &str, options: &MeshOptions) -> Result<()> {
    const CONNECTIONS: usize = 1000;
    let Some(shop) = open_with(builder(), options, &[])? else { return Ok(()) };
    let servers = both(&shop, &["--mode", "exchange"])?;
    let client = shop.cluster.pod("shop/client")?;
    for ((of, to), server) in targets(&shop)?.into_iter().zip([0, 0, 1, 1]) {
        if of != path {
            continue;
        }
        let count = (CONNECTIONS / 2).to_string();
        let seed = if to.is_ipv4() { "1" } else { "100000" };
        let run = client.tool("exchange")?.arg(to.to_string()).args(["--count", &count]);
        let output = run.args(["--seed", seed, "--most", "400000"]).limit(LONG).output()?;
        let lines = output.json();
        let done = lines.last().with_context(|| output.stderr.clone())?;
        ensure!(
            done["good"] == CONNECTIONS / 2,
            "{to}: {}\n{}\n{}",
            text(lines.iter().rev().take(10)),
            text(&bad(&servers[server])),
            shop.logs()
        );
    }
    let server = &servers[usize::from(path == "tunnel")];
    weft_tests::eventually("the server to have seen all", || {
        let lines = server.json();
        let good = lines.iter().filter(|line| line["good"] == true).count();
        (good == CONNECTIONS).then_some(())
    })
    .with_context(|| format!("{}\n{}", text(&bad(server)), shop.logs()))
}

fn text<'a>(lines: impl IntoIterator<Item = &'a Value>) -> String {
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

fn bad(server: &Process) -> Vec<Value> {
    let lines = server.json().into_iter();
    lines.filter(|line| line["good"] == false || line["event"] == "error").take(10).collect()
}

#[test]
fn a_thousand_connections_byte_by_byte_directly() -> Result<()> {
    exchange("direct", &MeshOptions::default())
}

#[test]
fn a_thousand_connections_byte_by_byte_through_the_tunnel() -> Result<()> {
    exchange("tunnel", &MeshOptions::default())
}

/// What goes wrong above and not here goes wrong on the hops, and not in the tunnel.
#[test]
fn a_thousand_connections_byte_by_byte_through_the_tunnel_alone() -> Result<()> {
    exchange("tunnel", &without_acceleration())
}
