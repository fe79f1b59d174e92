use std::time::{Duration, Instant};

use weft_agent::kernel::Kernel;
use weft_common::{CHARGED, CONNECTION_CUT, Counter, FlowEvent, FlowKind, Path, Reason};

use crate::node::{Node, PATIENCE};

const PORT: u16 = 7000;

#[test]
fn forbidden_connections_are_cut_and_others_go_on() {
    if weft_tests::skipped_without_root() {
        return;
    }
    const COUNT: usize = 10_000;
    let mut node = Node::new();
    node.kernel.apply(&node.tables(true)).unwrap();
    let mut server = node
        .server
        .tool("serve")
        .unwrap()
        .args(["--mode", "stall", "--quiet", "--tcp", &PORT.to_string()])
        .spawn()
        .unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    let mut client = node
        .client
        .tool("hold")
        .unwrap()
        .args([&node.server.v4(PORT).to_string(), "--count", &COUNT.to_string()])
        .spawn()
        .unwrap();
    let holding = client.await_event(PATIENCE, "holding").unwrap();
    assert_eq!(holding["held"], COUNT, "{holding}");
    assert_eq!(node.kernel.list_connections().unwrap().len(), COUNT);

    node.kernel.apply(&node.tables(true)).unwrap();
    let start = Instant::now();
    assert_eq!(node.kernel.cut_forbidden().unwrap(), vec![], "all are still allowed");
    println!("judging {COUNT} connections took {:?}", start.elapsed());
    assert_eq!(node.kernel.list_connections().unwrap().len(), COUNT);

    node.kernel.prepare_to_cut().unwrap();
    // How long each step took.
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).finish();
    let printing = tracing::subscriber::set_default(subscriber);
    let start = Instant::now();
    node.kernel.apply(&node.tables(false)).unwrap();
    let cut = node.kernel.cut_forbidden().unwrap();
    println!("cutting {COUNT} connections took {:?}", start.elapsed());
    drop(printing);
    assert_eq!(cut.len(), COUNT);
    for one in &cut {
        assert_eq!(one.connection.decision.reason, Reason::RuleDenies as u32);
        assert_ne!(one.connection.flags & CONNECTION_CUT, 0);
        assert_eq!(one.connection.origin.pod, Node::CLIENT);
        assert_eq!(one.connection.server, Node::SERVER);
    }
    weft_tests::eventually("no record is left", || {
        node.kernel.list_connections().unwrap().is_empty().then_some(())
    })
    .unwrap();
    assert!(client.is_running() && server.is_running());
    assert_eq!(node.kernel.cut_forbidden().unwrap(), vec![]);
}

/// What a server never closes is not kept for ever, and hinders nobody from connecting.
#[test]
fn records_of_a_server_that_never_closes_are_bounded() {
    if weft_tests::skipped_without_root() {
        return;
    }
    const BOUND: u32 = 40;
    let mut node = Node::with(|options| options.settings.connections_per_pod = BOUND);
    node.kernel.apply(&node.tables(true)).unwrap();
    let run = node.server.tool("serve").unwrap().args(["--mode", "stall", "--quiet"]);
    let mut server = run.args(["--tcp", &PORT.to_string()]).spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    for _ in 0..4 {
        let to = node.server.v4(PORT).to_string();
        let run = node.client.tool("hold").unwrap().args([&to, "--count", "30"]);
        let mut client = run.spawn().unwrap();
        let holding = client.await_event(PATIENCE, "holding").unwrap();
        assert_eq!(holding["held"], 30, "{holding}");
        drop(client);
        weft_tests::eventually("the client's sockets are closed", || {
            let records = node.kernel.list_connections().unwrap();
            records.iter().all(|(_, record)| record.charged != CHARGED).then_some(())
        })
        .unwrap();
    }
    assert_eq!(node.kernel.list_connections().unwrap().len(), BOUND as usize);
    drop(server);
    weft_tests::eventually("no record is left", || {
        node.kernel.list_connections().unwrap().is_empty().then_some(())
    })
    .unwrap();
}

/// Where there is room for one connection and a half, one of them is accelerated, and all work.
#[test]
fn what_finds_the_map_of_sockets_full_goes_over_tcp() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::with(|options| {
        options.map_sizes.set("SOCKETS", 3);
    });
    node.kernel.apply(&node.tables(true)).unwrap();
    let run = node.server.tool("serve").unwrap().args(["--tcp", &PORT.to_string(), "--quiet"]);
    let mut server = run.args(["--mode", "trade"]).spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    let to = [node.server.v4(PORT), node.server.v6(PORT)];
    let mut clients: Vec<_> = to.into_iter().chain(to).map(|to| node.trade(to)).collect();
    let counters = weft_tests::eventually("words to be redirected", || {
        let counters = node.kernel.counters().unwrap();
        (counters.get(Counter::Redirected) > 1000).then_some(counters)
    })
    .unwrap();
    assert_eq!(counters.get(Counter::SocketsFull), 5);
    for (client, writer) in &mut clients {
        *writer = std::io::pipe().unwrap().1;
        let traded = client.await_event(PATIENCE, "traded").unwrap();
        assert_eq!(traded["in_order"], true, "{traded}");
        assert_ne!(traded["words"], 0, "{traded}");
    }
}

#[test]
fn every_connection_is_judged_once_under_a_policy() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::new();
    let mut server =
        node.server.tool("serve").unwrap().args(["--tcp", &PORT.to_string()]).spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    node.kernel.apply(&node.tables(true)).unwrap();
    let mut clients = Vec::new();
    for to in [node.server.v4(PORT), node.server.v6(PORT)] {
        let tool = node.client.tool("hold").unwrap().arg(to.to_string());
        let mut client = tool.args(["--count", "1"]).spawn().unwrap();
        client.await_event(PATIENCE, "holding").unwrap();
        clients.push(client);
    }
    let generations = |kernel: &Kernel| -> Vec<u32> {
        kernel.list_connections().unwrap().iter().map(|(_, record)| record.generation).collect()
    };
    let first = node.kernel.config().generation;
    assert_eq!(generations(&node.kernel), [first; 2]);
    node.kernel.apply(&node.tables(true)).unwrap();
    assert_eq!(generations(&node.kernel), [first; 2]);
    assert_eq!(node.kernel.cut_forbidden().unwrap(), vec![]);
    assert_eq!(generations(&node.kernel), [first + 1; 2]);
    node.kernel.apply(&node.tables(false)).unwrap();
    assert_eq!(node.kernel.cut_forbidden().unwrap().len(), 2);
    weft_tests::eventually("their records to go", || {
        generations(&node.kernel).is_empty().then_some(())
    })
    .unwrap();
}

#[tokio::test]
async fn a_process_with_a_cut_connection_is_told() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::new();
    let mut flows = node.kernel.flow_events().unwrap();
    node.kernel.apply(&node.tables(true)).unwrap();
    let mut server =
        node.server.tool("serve").unwrap().args(["--tcp", &PORT.to_string()]).spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    for to in [node.server.v4(PORT), node.server.v6(PORT)] {
        node.kernel.apply(&node.tables(true)).unwrap();
        let before = node.kernel.counters().unwrap().get(Counter::Redirected);
        let mut probe = node
            .client
            .tool("probe")
            .unwrap()
            // It sends at once, and again when it is cut.
            .args([&to.to_string(), "--milliseconds", "60000", "--pause-micros", "2000000"])
            .spawn()
            .unwrap();
        probe.await_event(PATIENCE, "established").unwrap();
        weft_tests::eventually("bytes move from socket to socket", || {
            let now = node.kernel.counters().unwrap().get(Counter::Redirected);
            (now > before).then_some(())
        })
        .unwrap();
        node.kernel.apply(&node.tables(false)).unwrap();
        assert_eq!(node.kernel.cut_forbidden().unwrap().len(), 1);
        let mut events = Vec::new();
        while !events.iter().any(|one: &FlowEvent| one.kind == FlowKind::Close as u8) {
            let reading = tokio::time::timeout(PATIENCE, flows.read(&mut events));
            reading.await.expect("its socket closes").unwrap();
        }
        let cut = events.iter().filter(|one| one.kind == FlowKind::Cut as u8).count();
        assert_eq!(cut, 1, "{events:?}");
        let ended = probe.await_event(PATIENCE, "ended").unwrap();
        assert!(ended["error"].is_object(), "{to}: {ended}");
    }
}

#[tokio::test]
async fn flows_are_reported() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::new();
    node.kernel.apply(&node.tables(true)).unwrap();
    let mut flows = node.kernel.flow_events().unwrap();
    let mut server =
        node.server.tool("serve").unwrap().args(["--tcp", &PORT.to_string()]).spawn().unwrap();
    server.await_event(PATIENCE, "listening").unwrap();
    node.client.tool("connect").unwrap().arg(node.server.v4(PORT).to_string()).output().unwrap();
    let mut events = Vec::new();
    while !events.iter().any(|event: &FlowEvent| event.kind == FlowKind::Close as u8) {
        tokio::time::timeout(PATIENCE, flows.read(&mut events))
            .await
            .expect("events come without being waited for long")
            .unwrap();
    }
    let open = &events[0];
    assert_eq!(open.kind, FlowKind::Open as u8);
    assert_eq!(open.path, Path::Direct as u8);
    assert_eq!((open.source_pod, open.destination_pod), (Node::CLIENT, Node::SERVER));
    assert_eq!(open.destination.port, u32::from(PORT));

    node.kernel.apply(&node.tables(false)).unwrap();
    node.client.tool("connect").unwrap().arg(node.server.v4(PORT).to_string()).output().unwrap();
    events.clear();
    tokio::time::timeout(PATIENCE, flows.read(&mut events)).await.unwrap().unwrap();
    assert_eq!(events[0].kind, FlowKind::Denied as u8);
    assert_eq!(events[0].decision.rule, 1);
}

#[test]
fn finds_the_interface_of_a_pod_and_hooks_it() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::new();
    let mut waiting = node.server.spawn(["sleep", "60"]).unwrap();
    let host = node.cluster.node("node-a").unwrap().namespace();
    let find = || Kernel::network_of(node.server.pod_cgroup()).unwrap().interfaces;
    assert!(find().is_empty(), "its interfaces lead to another namespace than this");
    let found = host.enter(find).unwrap();
    assert_eq!(found.len(), 1);
    let interface = found[0];
    // Its links are named by their indexes, and the index by this namespace.
    let kernel = &mut node.kernel;
    host.enter(|| kernel.attach_interface(interface, Node::SERVER).unwrap()).unwrap();
    host.enter(|| kernel.attach_interface(interface, Node::SERVER).unwrap()).unwrap();
    assert_eq!(kernel.attached_interfaces().get(&interface), Some(&Node::SERVER));
    let shown = kernel.status().unwrap();
    assert!(kernel.is_attached(interface, Node::SERVER));
    for name in ["pod_interface", "to_pod_interface"] {
        let shown = shown.programs.iter().find(|one| one.name == name).unwrap();
        assert_eq!(shown.attached_to, "1 interfaces", "{name}");
    }
    kernel.detach_interface(interface).unwrap();
    assert!(kernel.attached_interfaces().is_empty());
    waiting.kill();
}

#[test]
fn an_interface_that_cannot_be_hooked_does_not_count_as_hooked() {
    if weft_tests::skipped_without_root() {
        return;
    }
    const NONE: u32 = 2_000_000_000;
    let mut node = Node::new();
    // Each time, not only the first.
    for _ in 0..2 {
        assert!(!node.kernel.is_attached(NONE, Node::SERVER));
        node.kernel.attach_interface(NONE, Node::SERVER).unwrap_err();
        assert!(!node.kernel.is_attached(NONE, Node::SERVER));
        assert!(node.kernel.attached_interfaces().is_empty());
    }
}

#[tokio::test]
async fn the_programs_log_where_it_is_asked_for() {
    if weft_tests::skipped_without_root() {
        return;
    }
    let mut node = Node::with(|options| options.bpf_log = true);
    let log = node.kernel.bpf_log().unwrap().expect("the programs have log statements");
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || written.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    node.kernel.apply(&node.tables(false)).unwrap();
    node.client.tool("connect").unwrap().arg(node.server.v4(PORT).to_string()).output().unwrap();
    let reading = log.run();
    tokio::pin!(reading);
    let deadline = Instant::now() + PATIENCE;
    while !lines.text().contains("connect refused") {
        assert!(Instant::now() < deadline, "no such line: {}", lines.text());
        let _unused = tokio::time::timeout(Duration::from_millis(10), &mut reading).await;
    }
}

/// Log lines, kept.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
