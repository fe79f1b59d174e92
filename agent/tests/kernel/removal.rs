//! Nothing is left in the kernel, while connections that were accelerated go on.

use rustix::process::Signal;
use weft_agent::kernel::{Remains, Removed};
use weft_common::{Connection, Counter};
use weft_tests::{Cluster, Process};

use crate::fixture;
use crate::node::{Node, PATIENCE};

const PORT: u16 = 7000;

/// A node whose pods may talk, and its server.
fn start(mode: &str, stall_milliseconds: &str) -> (Node, Process) {
    let mut node = Node::new();
    node.kernel.apply(&node.tables(true)).unwrap();
    let run = node.server.tool("serve").unwrap().args(["--tcp", &PORT.to_string(), "--quiet"]);
    let run = run.args(["--mode", mode, "--stall-milliseconds", stall_milliseconds]);
    let mut server = run.spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    (node, server)
}

fn redirected(node: &Node) -> u64 {
    node.kernel.counters().unwrap().get(Counter::Redirected)
}

/// A node without an agent.
struct Bare {
    held: Remains,
    removed: Removed,
    _cluster: Cluster,
}

impl Bare {
    /// Ends the agent, and removes what it has in the kernel.
    fn new(node: Node) -> Self {
        let Node { kernel, pins, cluster, .. } = node;
        let held = Remains::pinned_under(&pins.0).unwrap();
        assert!(held.programs.values().any(|name| name == "redirect"), "{held:?}");
        drop(kernel);
        let removed = fixture::remove(&pins.0);
        assert_eq!(removed.trouble, None);
        Self { held, removed, _cluster: cluster }
    }

    fn await_nothing_left(&self) {
        let mut left = Remains::default();
        let freed = weft_tests::eventually("everything to be freed", || {
            left = self.held.left().unwrap();
            left.is_empty().then_some(())
        });
        freed.unwrap_or_else(|error| panic!("{error}: {left:?}, {:?}", self.removed.held));
    }
}

/// Words both ways, which readers that stall leave unread now and then.
#[test]
fn words_arrive_in_order_through_the_removal() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let (node, server) = start("trade", "100");
    let to = [node.server.v4(PORT), node.server.v6(PORT)];
    let mut clients: Vec<_> = to.into_iter().chain(to).map(|to| node.trade(to)).collect();
    weft_tests::eventually("words to be redirected", || (redirected(&node) > 2000).then_some(()))
        .unwrap();
    let bare = Bare::new(node);
    assert_eq!(bare.removed.held.len(), 0, "{:?}", bare.removed);
    bare.await_nothing_left();

    let mut sent = Vec::new();
    let mut received = Vec::new();
    for (client, writer) in &mut clients {
        assert!(client.is_running(), "{}", client.tail());
        // Both ends send once more before they end.
        *writer = std::io::pipe().unwrap().1;
        let traded = client.await_event(PATIENCE, "traded").unwrap();
        assert_eq!(traded["in_order"], true, "{traded}");
        sent.push(traded["sent"].as_u64().unwrap());
        received.push(traded["words"].as_u64().unwrap());
    }
    let count = clients.len();
    let others = weft_tests::eventually("the server's ends", || {
        let ends: Vec<_> =
            server.json().into_iter().filter(|line| line["event"] == "traded").collect();
        (ends.len() == count).then_some(ends)
    })
    .unwrap();
    assert!(others.iter().all(|end| end["in_order"] == true), "{others:?}");
    let sorted = |mut numbers: Vec<u64>| {
        numbers.sort_unstable();
        numbers
    };
    let of_server = |key: &str| sorted(others.iter().map(|o| o[key].as_u64().unwrap()).collect());
    assert_eq!(sorted(sent), of_server("words"));
    assert_eq!(sorted(received), of_server("sent"));
}

/// Connections on which nothing moves hold nothing.
#[test]
fn quiet_connections_stay_open_and_hold_nothing() {
    if weft_tests::skipped_without_root() {
        return;
    }
    const COUNT: usize = 2000;
    let (node, mut server) = start("stall", "0");
    let to = node.server.v4(PORT).to_string();
    let run = node.client.tool("hold").unwrap().args([&*to, "--count", &COUNT.to_string()]);
    let mut client = run.spawn().unwrap();
    assert_eq!(client.await_event(PATIENCE, "holding").unwrap()["held"], COUNT);
    let bare = Bare::new(node);
    assert_eq!(bare.removed.held.len(), 0);
    bare.await_nothing_left();
    assert!(client.is_running() && server.is_running());
}

/// A process that waits in `recv()` for a byte lets go when it gets it.
#[test]
fn a_process_that_waits_for_its_next_byte_gets_it() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let (node, mut server) = start("echo", "0");
    let run = node.client.tool("probe").unwrap().arg(node.server.v4(PORT).to_string());
    let run = run.args(["--milliseconds", "600000", "--pause-micros", "2000000"]);
    let mut client = run.spawn().unwrap();
    client.await_event(PATIENCE, "established").unwrap();
    weft_tests::eventually("bytes to be redirected", || (redirected(&node) > 0).then_some(()))
        .unwrap();
    let bare = Bare::new(node);
    assert_eq!(bare.removed.held.len(), 0);
    bare.await_nothing_left();
    assert!(client.is_running() && server.is_running(), "{}", client.tail());
    assert!(client.json().iter().all(|line| line["event"] != "ended"), "{}", client.tail());
}

/// With no agent, readers sleep on bytes that are there; the removal wakes them.
#[test]
fn readers_that_trusted_a_short_read_are_woken() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let (mut node, server) = start("edge-words", "300");
    let to = node.server.v4(PORT).to_string();
    // As an agent that was killed leaves it.
    let clients: Vec<Process> = (64..400)
        .step_by(12)
        .map(|kib: u32| {
            let run = node.client.tool("words").unwrap().args([&*to, "--kib", &kib.to_string()]);
            run.spawn().unwrap()
        })
        .collect();
    node.kernel.apply(&node.tables(true)).unwrap();
    weft_tests::eventually("words to be sent", || (redirected(&node) > 100).then_some(())).unwrap();
    let bare = Bare::new(node);
    assert_eq!(bare.removed.held.len(), 0, "{:?}", bare.removed);
    for mut client in clients {
        assert!(client.wait(PATIENCE).unwrap().success(), "{}", client.tail());
    }
    bare.await_nothing_left();
    let lines = server.json();
    assert!(lines.iter().all(|line| line["in_order"] != false), "{lines:?}");
}

/// What was redirected to a process that does not read would be lost.
#[test]
fn a_connection_with_unread_bytes_is_named_and_keeps_them() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let (node, mut server) = start("words", "0");
    server.signal(Signal::STOP).unwrap();
    let to = node.server.v4(PORT);
    let run = node.client.tool("words").unwrap().args([&*to.to_string(), "--kib", "32"]);
    let mut client = run.spawn().unwrap();
    weft_tests::eventually("all of it to be redirected", || {
        let sent = |one: &Connection| one.low_bytes + one.high_bytes;
        let records = node.kernel.list_connections().unwrap();
        records.iter().any(|(_, record)| sent(record) == (32 << 10) + 8).then_some(())
    })
    .unwrap();
    let bare = Bare::new(node);
    let held: Vec<_> = bare.removed.held.iter().collect();
    assert!(held.len() == 1 && (held[0].low == to || held[0].high == to), "{held:?}");
    weft_tests::eventually("the others to be freed", || {
        let left = bare.held.left().unwrap();
        (left.programs.values().eq(["redirect"]) && left.links.is_empty()).then_some(())
    })
    .unwrap();

    server.signal(Signal::CONT).unwrap();
    let words = server.await_event(PATIENCE, "words").unwrap();
    assert!(words["in_order"] == true && words["words"] == (32 << 10) / 8, "{words}");
    assert!(client.wait(PATIENCE).unwrap().success(), "{}", client.tail());
    bare.await_nothing_left();
}
