use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// How long an event may take before the wait is given up, on a busy machine, too.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn tells_pods_by_the_names_of_both_drivers() {
    let uid = "0f1e2d3c-aaaa-bbbb-cccc-0123456789ab";
    let pod = Directory::Pod(uid.into());
    let escaped = uid.replace('-', "_");
    assert_eq!(Directory::of(&format!("kubepods-burstable-pod{escaped}.slice")), pod);
    assert_eq!(Directory::of(&format!("kubepods-pod{escaped}.slice")), pod);
    assert_eq!(Directory::of(&format!("kubelet-kubepods-besteffort-pod{escaped}.slice")), pod);
    assert_eq!(Directory::of(&format!("pod{uid}")), pod);
    // A static pod's uid is a hash.
    assert_eq!(
        Directory::of("kubepods-burstable-pod5f2a9c.slice"),
        Directory::Pod("5f2a9c".into())
    );
    for name in ["burstable", "besteffort", "kubepods-burstable.slice", "kubepods-besteffort.slice"]
    {
        assert_eq!(Directory::of(name), Directory::QosClass, "{name}");
    }
    for name in ["pod", "kubepods.slice", "system.slice", "kubepods-pod.slice", "cri-1.scope", ""] {
        assert_eq!(Directory::of(name), Directory::Other, "{name}");
    }
}

#[test]
fn finds_the_hierarchy_among_the_mounts() {
    let hybrid = "\
34 23 0:29 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
35 34 0:30 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
36 34 0:31 / /sys/fs/cgroup/memory rw,relatime shared:10 - cgroup cgroup rw,memory\n";
    assert_eq!(mount::hierarchy_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
    let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n\
        90 80 0:26 / /run/somewhere/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
    assert_eq!(mount::hierarchy_in(unified), Some(PathBuf::from("/sys/fs/cgroup")));
    assert_eq!(mount::hierarchy_in("1 2 0:3 / /proc rw - proc proc rw\n"), None);
    let spaced = "90 80 0:26 / /run/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
    assert_eq!(mount::hierarchy_in(spaced), Some(PathBuf::from("/run/my cgroup")));
}

/// A directory among the real cgroups.
struct Root(PathBuf);

impl Root {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("weft-{}-watch-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = find_hierarchy().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn add(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        fn remove(path: &Path) {
            for (_, below) in directories(path).unwrap_or_default() {
                remove(&below);
            }
            let _unused = fs::remove_dir(path);
        }
        remove(&self.0);
    }
}

fn pod(path: &Path, uid: &str) -> PodCgroup {
    PodCgroup { uid: uid.into(), id: id_of(path).unwrap(), path: path.to_owned() }
}

async fn next(watch: &mut CgroupWatch) -> CgroupEvent {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("an event")
        .expect("the watch goes on")
}

#[tokio::test]
async fn sees_pods_come_and_go_under_both_drivers() {
    let root = Root::new();
    let first = root.add("kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice");
    let mut watch = CgroupWatch::start(&root.0).unwrap();
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&first, "1-2")));

    // Guaranteed, directly below the root.
    let second = root.add("kubepods-pod3_4.slice");
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&second, "3-4")));
    // The cgroup of a class that was not there, and a pod in it at once.
    let third = root.add("burstable/pod5-6/container");
    let third = third.parent().unwrap();
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(third, "5-6")));
    let fourth = root.add("burstable/pod7-8");
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&fourth, "7-8")));

    let gone = pod(&fourth, "7-8");
    fs::remove_dir(&fourth).unwrap();
    assert_eq!(next(&mut watch).await, CgroupEvent::Removed(gone));
    assert_eq!(find_pods(&root.0).unwrap().len(), 3);

    // A class that goes and comes again is watched again.
    fs::remove_dir(&first).unwrap();
    assert!(matches!(next(&mut watch).await, CgroupEvent::Removed(_)));
    fs::remove_dir(first.parent().unwrap()).unwrap();
    let again = root.add("kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice");
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&again, "1-2")));
    let last = root.add("kubepods-besteffort.slice/kubepods-besteffort-pod9.slice");
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&last, "9")));
}

/// A kubelet may make the root anew.
#[tokio::test]
async fn a_root_that_is_made_anew_is_watched_again() {
    let root = Root::new();
    let first = root.add("burstable/pod1");
    let gone = pod(&first, "1");
    let mut watch = CgroupWatch::start(&root.0).unwrap();
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(gone.clone()));
    for path in [&first, &root.0.join("burstable"), &root.0] {
        fs::remove_dir(path).unwrap();
    }
    let mut seen = BTreeSet::new();
    while seen.len() < 2 {
        match next(&mut watch).await {
            CgroupEvent::Removed(removed) => {
                assert_eq!(removed, gone);
                seen.insert("removed");
            }
            CgroupEvent::Lost(_) => {
                seen.insert("lost");
            }
            event => panic!("{event:?}"),
        }
    }
    let second = root.add("burstable/pod1");
    assert_eq!(next(&mut watch).await, CgroupEvent::Found);
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&second, "1")));
    let third = root.add("pod2");
    assert_eq!(next(&mut watch).await, CgroupEvent::Added(pod(&third, "2")));
    // With nothing below it, and so fast that it is there again when it is looked at.
    for path in [&second, &root.0.join("burstable"), &third] {
        fs::remove_dir(path).unwrap();
    }
    for _ in 0..2 {
        assert!(matches!(next(&mut watch).await, CgroupEvent::Removed(_)));
    }
    fs::remove_dir(&root.0).unwrap();
    let fourth = root.add("pod4");
    let mut events = Vec::new();
    while !events.contains(&CgroupEvent::Added(pod(&fourth, "4"))) {
        events.push(next(&mut watch).await);
    }
    assert!(events.contains(&CgroupEvent::Found), "{events:?}");
}

#[test]
fn finds_the_pods_root_of_every_kind_of_node() {
    for (made, expected) in [
        (
            &["system.slice/a", "kubepods.slice/kubepods-burstable.slice"][..],
            Some("kubepods.slice"),
        ),
        (&["init.scope", "kubepods/besteffort"], Some("kubepods")),
        // kind: the kubelet has a root of its own, in the node's cgroup namespace or seen from the
        // host.
        (&["kubelet.slice/kubelet-kubepods.slice"], Some("kubelet.slice/kubelet-kubepods.slice")),
        (&["system.slice/docker-1.scope/kubelet/kubepods"], None),
        (&["docker/1/kubepods/burstable"], Some("docker/1/kubepods")),
        (&["docker/1/kubepods", "kubepods/burstable"], Some("kubepods")),
        (&["system.slice/a"], None),
    ] {
        let root = tempfile::tempdir().unwrap();
        for path in made {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let found = mount::pods_root_in(root.path());
        assert_eq!(found, expected.map(|path| root.path().join(path)), "{made:?}");
    }
}

#[test]
fn every_new_pod_is_seen() {
    let root = Root::new();
    root.add("burstable");
    let mut watch = CgroupWatch::start(&root.0).unwrap();
    let mut times = Vec::new();
    for number in 0..50 {
        let start = Instant::now();
        root.add(&format!("burstable/pod{number}"));
        while watch.try_next().is_none() {
            assert!(start.elapsed() < PATIENCE, "no event");
            std::thread::yield_now();
        }
        times.push(start.elapsed());
    }
    times.sort();
    println!("median {:?}, slowest {:?}", times[25], times[49]);
}

#[test]
fn finds_a_process_at_any_depth() {
    let root = Root::new();
    let container = root.add("pod1/container/inner");
    assert_eq!(find_process(&root.0).unwrap(), None);
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let moved = fs::write(container.join("cgroup.procs"), child.id().to_string());
    let found = find_process(&root.0);
    child.kill().unwrap();
    child.wait().unwrap();
    moved.unwrap();
    assert_eq!(found.unwrap(), Some(child.id()));
}

#[test]
fn a_process_is_found_by_the_cgroup_that_lists_it() {
    let root = tempfile::tempdir().unwrap();
    let container = root.path().join("besteffort/pod1/proxy");
    let other = root.path().join("besteffort/pod1/agent");
    for (directory, listed) in [(&container, "12\n34\n"), (&other, "123\n")] {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("cgroup.procs"), listed).unwrap();
    }
    for parent in ["", "besteffort", "besteffort/pod1"] {
        fs::write(root.path().join(parent).join("cgroup.procs"), "").unwrap();
    }
    assert_eq!(find_cgroup_of(root.path(), 34).unwrap(), Some(container));
    assert_eq!(find_cgroup_of(root.path(), 123).unwrap(), Some(other));
    assert_eq!(find_cgroup_of(root.path(), 3).unwrap(), None);
}

#[test]
fn the_root_that_another_driver_has_left_is_not_taken_for_the_pods() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str, populated: u32| {
        fs::create_dir_all(root.path().join(path)).unwrap();
        let events = format!("populated {populated}\nfrozen 0\n");
        fs::write(root.path().join(path).join("cgroup.events"), events).unwrap();
    };
    let found = || mount::pods_root_in(root.path()).unwrap();
    at("kubepods", 0);
    at("kubepods.slice", 0);
    assert_eq!(found(), root.path().join("kubepods"));
    at("kubepods.slice", 1);
    assert_eq!(found(), root.path().join("kubepods.slice"));
}
