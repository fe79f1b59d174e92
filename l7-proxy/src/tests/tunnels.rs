//! Tunnels through changes of configuration, and at their bounds.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proto::v1::Update;

use super::support::*;
use crate::Limits;

/// A pod that sends back what it gets.
async fn echo(mesh: &Mesh, port: u16) {
    let listener = TcpListener::bind((mesh.server, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                // A client that resets is the test's business.
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
}

/// One round trip.
async fn ask(socket: &mut TcpStream, question: &[u8]) -> std::io::Result<()> {
    let mut answer = vec![0; question.len()];
    let round = async {
        socket.write_all(question).await?;
        socket.read_exact(&mut answer).await
    };
    tokio::time::timeout(PATIENCE, round).await.expect("an answer")?;
    assert_eq!(answer, question);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_come_back_as_they_were_sent() {
    let mesh = Mesh::new().await;
    echo(&mesh, 8080).await;
    let mut socket = mesh.connect(8080).await.unwrap();
    let source = socket.local_addr().unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (mut reader, mut writer) = socket.split();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    let proven = mesh.nodes[1].records.sources.lock().unwrap()[0];
    assert_eq!(proven.source, endpoint(source));
    assert_eq!(proven.destination, endpoint((mesh.server, 8080).into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_cuts_nothing() {
    let mesh = Arc::new(Mesh::new().await);
    echo(&mesh, 8080).await;
    // The first certificates soon expire: what works later works by the renewed ones.
    let soon = time::Duration::seconds(4);
    let renew = |left| {
        let issue = |account| mesh.authority.issue(&identity(account), left);
        mesh.nodes[0].agent.send_certificate(issue("client"));
        mesh.nodes[1].agent.send_certificate(issue("server"));
    };
    renew(soon);
    let expiry = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut users = tokio::task::JoinSet::new();
    let (done, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    for user in 0..16u32 {
        let (mesh, done, over) = (mesh.clone(), done.clone(), over.clone());
        users.spawn(async move {
            let mut lasting = mesh.connect(8080).await.unwrap();
            let mut rounds = 0u32;
            while !over.load(Ordering::Relaxed) {
                let question = [user.to_le_bytes(), rounds.to_le_bytes()].concat();
                ask(&mut lasting, &question).await.expect("the lasting connection goes on");
                let mut fresh = mesh.connect(8080).await.unwrap();
                ask(&mut fresh, &question).await.expect("a new connection works");
                rounds += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for _ in 0..20 {
        renew(HOUR);
        // Connections are made and used between one renewal and the next.
        let before = done.load(Ordering::Relaxed);
        until(async || done.load(Ordering::Relaxed) > before + 32).await;
    }
    tokio::time::sleep_until(expiry).await;
    let before = done.load(Ordering::Relaxed);
    until(async || done.load(Ordering::Relaxed) > before + 32).await;
    over.store(true, Ordering::Relaxed);
    while let Some(user) = users.join_next().await {
        user.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stall_hold_up_their_writers_and_nobody_else() {
    const STALLED: usize = 80;
    /// Both proxies' windows and the sockets' buffers: what the kernel grants on three hops.
    const BOUND: usize = 48 << 20;
    let mesh = Mesh::new().await;
    echo(&mesh, 8080).await;
    let listener = TcpListener::bind((mesh.server, 9090)).await.unwrap();
    let mut held = Vec::new();
    let block = vec![7; 256 << 10];
    let mut first = 0;
    for index in 0..STALLED {
        let mut writer = mesh.connect(9090).await.unwrap();
        let (reader, _) = listener.accept().await.unwrap();
        // Fill the first wholly, the others beyond a stream's window.
        let most = if index == 0 { BOUND } else { 2 << 20 };
        let mut written = 0;
        while written < most {
            let write = writer.write(&block);
            match tokio::time::timeout(Duration::from_secs(1), write).await {
                Ok(count) => written += count.unwrap(),
                Err(_) => break,
            }
        }
        if index == 0 {
            assert!(written < BOUND, "a writer to a stalled reader wrote {written} bytes");
            first = written;
        }
        held.push((writer, reader, written));
    }
    println!("a writer to a stalled reader wrote {first} bytes");
    let mut socket = mesh.connect(8080).await.unwrap();
    ask(&mut socket, b"is anybody there?").await.unwrap();
    // What was held up arrives in the end.
    for (mut writer, mut reader, written) in held {
        let drain = tokio::spawn(async move {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.map(|_| bytes.len())
        });
        writer.shutdown().await.unwrap();
        assert_eq!(drain.await.unwrap().unwrap(), written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tunnel_is_joined_by_another() {
    let limits = Limits { streams_per_tunnel: 4, ..Limits::default() };
    let mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    let mut sockets = Vec::new();
    for _ in 0..40 {
        let mut socket = mesh.connect(8080).await.unwrap();
        ask(&mut socket, b"first").await.unwrap();
        sockets.push(socket);
    }
    for socket in &mut sockets {
        ask(socket, b"again").await.unwrap();
    }
}

/// A peer that allows few streams, or none, is not flooded with tunnels.
#[tokio::test(flavor = "multi_thread")]
async fn tunnels_are_bounded() {
    let limits = Limits { streams_per_tunnel: 1, tunnels_per_key: 2, ..Limits::default() };
    let mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        match room(&mesh).await {
            Ok(socket) => held.push(socket),
            Err(_) => refused += 1,
        }
    }
    assert!(held.len() >= 2 && refused >= 20, "{} held, {refused} refused", held.len());
    drop(held);
    until(async || room(&mesh).await.is_ok()).await;
}

async fn room(mesh: &Mesh) -> std::io::Result<TcpStream> {
    let mut socket = mesh.connect(8080).await?;
    ask(&mut socket, b"room?").await.map(|()| socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pods_connections_do_not_use_up_anothers() {
    let limits = Limits { connections_per_pod: 16, ..Limits::default() };
    let mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        match room(&mesh).await {
            Ok(socket) => held.push(socket),
            Err(_) => refused += 1,
        }
    }
    assert!(held.len() <= 16 && refused >= 84, "{} held, {refused} refused", held.len());

    let other = Ipv4Addr::from(u32::from(mesh.client) + 1);
    let mut pod = workload("other", other, mesh.nodes[0].address, true);
    pod.identity = identity("client");
    for node in &mesh.nodes {
        node.agent.send_workload(pod.clone());
    }
    let mut socket = mesh.connect_from(other, (mesh.server, 8080).into()).await.unwrap();
    ask(&mut socket, b"room?").await.unwrap();
    // What is given back can be had again.
    drop(held);
    until(async || room(&mesh).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_agent_the_last_configuration_stays() {
    let mut mesh = Mesh::new().await;
    echo(&mesh, 8080).await;
    let mut socket = mesh.connect(8080).await.unwrap();
    ask(&mut socket, b"with").await.unwrap();

    let late = Ipv4Addr::from(u32::from(mesh.server) + 1);
    for node in &mut mesh.nodes {
        node.served.abort();
        node.agent.hang_up();
    }
    ask(&mut socket, b"without").await.unwrap();
    ask(&mut mesh.connect(8080).await.unwrap(), b"without").await.unwrap();

    // A restarted agent is found again, and what it says takes effect.
    let listener = TcpListener::bind((late, 8080)).await.unwrap();
    for (index, node) in mesh.nodes.iter_mut().enumerate() {
        node.agent.send(Update {
            workloads: vec![workload("late", late, node.address, index == 1)],
            certificates: vec![mesh.authority.issue(&identity("late"), HOUR)],
            ..Update::default()
        });
        node.served = node.agent.serve(&node.socket);
    }
    let elsewhere = workload("late", late, mesh.nodes[1].address, false);
    mesh.nodes[0].agent.send_workload(elsewhere);
    for node in &mesh.nodes {
        until(async || node.agent.watchers() == 1).await;
    }
    let mut fresh = mesh.connect_from(mesh.client, (late, 8080).into()).await.unwrap();
    fresh.write_all(b"hello").await.unwrap();
    let (mut served, _) = tokio::time::timeout(PATIENCE, listener.accept())
        .await
        .expect("the connection arrives")
        .unwrap();
    let mut bytes = [0; 5];
    served.read_exact(&mut bytes).await.unwrap();
    ask(&mut socket, b"with again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_waits_for_a_pod_that_is_new() {
    let limits = Limits { unknown_wait: PATIENCE, ..Limits::default() };
    let mesh = Mesh::with(limits).await;
    let new = Ipv4Addr::from(u32::from(mesh.server) + 1);
    let listener = TcpListener::bind((new, 8080)).await.unwrap();
    let mut socket = mesh.connect_from(mesh.client, (new, 8080).into()).await.unwrap();
    socket.write_all(b"early").await.unwrap();
    for node in &mesh.nodes {
        let mut pod =
            workload("new", new, mesh.nodes[1].address, node.address != mesh.nodes[0].address);
        pod.identity = identity("server");
        node.agent.send_workload(pod);
    }
    let (mut served, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 5];
    served.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_proxy_serves_while_anything_is_open() {
    // It ends as soon as it may: the test would take that long otherwise.
    let limits = Limits { drain: PATIENCE * 10, ..Limits::default() };
    let mut mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    let mut old = mesh.connect(8080).await.unwrap();
    ask(&mut old, b"before").await.unwrap();
    for node in &mesh.nodes {
        node.proxy.begin_stop();
    }
    for _ in 0..100 {
        let mut new = mesh.connect(8080).await.unwrap();
        ask(&mut new, b"while stopping").await.unwrap();
    }
    ask(&mut old, b"while stopping").await.unwrap();
    drop(old);
    for node in &mut mesh.nodes {
        node.stop();
    }
    assert!(mesh.connect(8080).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_waits_for_the_other_nodes_proxy() {
    let limits = Limits { absence: PATIENCE, ..Limits::default() };
    let mut mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    ask(&mut mesh.connect(8080).await.unwrap(), b"before").await.unwrap();
    mesh.nodes[1].stop();
    let mut waiting = mesh.connect(8080).await.unwrap();
    waiting.write_all(b"early").await.unwrap();
    mesh.nodes[1].start();
    let mut bytes = [0; 5];
    tokio::time::timeout(PATIENCE, waiting.read_exact(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(&bytes, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_does_not_wait_for_ever() {
    let limits = Limits { absence: Duration::ZERO, ..Limits::default() };
    let mut mesh = Mesh::with(limits).await;
    mesh.nodes[1].stop();
    assert!(room(&mesh).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_cuts_does_not_look_complete() {
    let limits = Limits { drain: Duration::ZERO, ..Limits::default() };
    let mut mesh = Mesh::with(limits).await;
    echo(&mesh, 8080).await;
    let mut socket = mesh.connect(8080).await.unwrap();
    ask(&mut socket, b"before").await.unwrap();
    mesh.nodes[0].stop();
    let read = tokio::time::timeout(PATIENCE, socket.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}
