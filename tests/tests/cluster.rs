//! The test cluster itself, without a mesh: pods reach each other, and nothing is left of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use weft_tests::{
    CgroupDriver, Cluster, Place, PodSpec, Process, Qos, Traces, skipped_without_root,
};

fn shop() -> Result<Cluster> {
    let pods = ["node-a", "node-b"].into_iter().flat_map(|node| {
        (0..4).map(move |number| PodSpec::new("shop", format!("{node}-{number}"), node))
    });
    Cluster::builder().node("node-a").node("node-b").outside("world").pods(pods).build()
}

/// Every pair of places talks over both families.
#[test]
fn pods_reach_each_other() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let cluster = shop()?;
    let servers = [cluster.pod("shop/node-a-0")?, cluster.pod("shop/node-b-0")?];
    let client = cluster.pod("shop/node-a-1")?;
    let world = cluster.node("world")?;
    let _running: Vec<_> = servers.iter().map(|server| serve(server)).collect::<Result<_>>()?;
    for server in &servers {
        for address in server.addresses().sockets(8080) {
            for from in [&**client, &**world] {
                let answer = &connect(from, address)?;
                ensure!(answer["answer"] == "hello", "{answer}");
            }
        }
        for address in world.public_addresses().both() {
            let answer = server.tool("ping")?.arg(address.to_string()).output()?.json();
            ensure!(answer[0]["event"] == "reply", "{answer:?}");
        }
    }
    Ok(())
}

/// The server sees who connects.
#[test]
fn peers_are_seen_as_they_are() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let cluster = shop()?;
    let (server, client) = (cluster.pod("shop/node-a-0")?, cluster.pod("shop/node-b-1")?);
    let running = serve(&server)?;
    connect(&client, server.v4(8080))?;
    connect(&client, server.v6(8080))?;
    let peers: Vec<_> = running.json().iter().map(|line| line["peer"].to_string()).collect();
    let expected = client.addresses();
    ensure!(peers.iter().any(|peer| peer.contains(&expected.ipv4.to_string())), "{peers:?}");
    ensure!(peers.iter().any(|peer| peer.contains(&expected.ipv6.to_string())), "{peers:?}");
    Ok(())
}

fn serve(place: &Place) -> Result<Process> {
    let mut server = place.tool("serve")?.args(["--tcp", "8080"]).spawn()?;
    server.await_event(Duration::from_secs(60), "listening")?;
    Ok(server)
}

fn connect(from: &Place, to: SocketAddr) -> Result<Value> {
    let output = from.tool("connect")?.arg(to.to_string()).args(["--send", "hello"]).output()?;
    output.json().pop().context("pod-tool said nothing")
}

#[test]
fn comes_up_and_leaves_nothing() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let start = Instant::now();
    let cluster = shop()?;
    eprintln!("2 nodes and 8 pods took {:?}", start.elapsed());
    let name = cluster.name().to_owned();
    let pod = cluster.pod("shop/node-a-0")?;
    let orphan = pod.exec(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"])?.success()?;
    ensure!(Traces::of(&name)?.namespaces.len() == 12);
    let start = Instant::now();
    drop(cluster);
    eprintln!("its removal took {:?}", start.elapsed());
    let traces = Traces::of(&name)?;
    ensure!(traces.is_empty(), "left behind:\n{traces}");
    let left = std::fs::read_to_string(format!("/proc/{}/stat", orphan.trim()));
    ensure!(!left.is_ok_and(|stat| stat.contains("(sleep) S")), "a process outlived its pod");
    Ok(())
}

#[test]
fn leaves_nothing_after_a_panic() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let mut name = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let cluster = shop().expect("a cluster");
        name = cluster.name().to_owned();
        let _server = cluster.pod("shop/node-a-0").and_then(|pod| pod.spawn(["sleep", "1000"]));
        panic!("on purpose");
    }));
    ensure!(panicked.is_err() && !name.is_empty());
    let traces = Traces::of(&name)?;
    ensure!(traces.is_empty(), "left behind:\n{traces}");
    Ok(())
}

/// A cluster whose owner was killed is found and removed by the next.
#[test]
fn removes_what_a_killed_owner_left() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    const CHILD: &str = "WEFT_TEST_OWNER";
    if std::env::var_os(CHILD).is_some() {
        let cluster = shop()?;
        println!("cluster {}", cluster.name());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    }
    let program = std::env::current_exe()?;
    let output = std::process::Command::new(program)
        .args(["--exact", "removes_what_a_killed_owner_left", "--nocapture"])
        .env(CHILD, "1")
        .output()?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let name = stdout.lines().find_map(|line| Some(line.split_once("cluster ")?.1));
    let name = name.unwrap_or_default();
    ensure!(name.starts_with("weft-"), "{output:?}");
    // Another test's cluster may have removed it already.
    Cluster::remove_stale()?;
    let traces = Traces::of(name)?;
    ensure!(traces.is_empty(), "left behind:\n{traces}");
    Ok(())
}

#[test]
fn lays_out_cgroups_as_a_kubelet_does() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    for (driver, classes) in [
        (CgroupDriver::Systemd, ["kubepods.slice/kubepods-pod", "kubepods-besteffort.slice/"]),
        (CgroupDriver::Cgroupfs, ["kubepods/pod", "kubepods/besteffort/pod"]),
    ] {
        let cluster = Cluster::builder()
            .node("node-a")
            .cgroup_driver(driver)
            .pod(PodSpec::new("shop", "first", "node-a").qos(Qos::Guaranteed))
            .pod(PodSpec::new("shop", "last", "node-a").qos(Qos::BestEffort))
            .build()?;
        for (pod, class) in ["shop/first", "shop/last"].into_iter().zip(classes) {
            let cgroup = cluster.exec(pod, ["grep", "^0:", "/proc/self/cgroup"])?.success()?;
            ensure!(cgroup.contains(class), "{pod} is in {cgroup}, not in {class}");
        }
    }
    Ok(())
}

#[test]
fn a_pod_takes_the_address_of_one_that_has_gone() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let cluster = shop()?;
    let old = cluster.pod("shop/node-a-2")?.addresses();
    cluster.remove_pod("shop/node-a-2")?;
    let [.., number] = old.ipv4.octets();
    let new = cluster.add_pod(PodSpec::new("shop", "new", "node-a").host_number(number))?;
    ensure!(new.addresses() == old);
    let _running = serve(&new)?;
    let client = cluster.pod("shop/node-b-0")?;
    let answer = connect(&client, new.v4(8080))?;
    ensure!(answer["answer"] == "hello", "{answer}");
    Ok(())
}

/// What a pod's process may do is what a container runtime grants.
#[test]
fn processes_of_pods_have_the_capabilities_of_containers() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let cluster = shop()?;
    let pod = cluster.pod("shop/node-a-0")?;
    let status = pod.exec(["cat", "/proc/self/status"])?.success()?;
    ensure!(status.contains("CapEff:\t00000000a80425fb"), "{status}");
    let status = pod.run("cat").arg("/proc/self/status").user(65532).output()?.success()?;
    ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    Ok(())
}

#[test]
fn another_process_can_load_a_cluster() -> Result<()> {
    if skipped_without_root() {
        return Ok(());
    }
    let cluster = shop()?;
    let loaded = Cluster::load(cluster.name())?;
    ensure!(loaded.exec("shop/node-a-0", ["true"])?.status.success());
    drop(loaded);
    ensure!(cluster.exec("shop/node-a-0", ["true"])?.status.success());
    let manifest = std::fs::read_to_string(cluster.manifests().join("cluster.yaml"))?;
    ensure!(manifest.matches("\"kind\": \"Pod\"").count() == 8, "{manifest}");
    Ok(())
}
