use std::collections::BTreeSet;
use std::path::Path;

use aya::programs::links::PinnedLink;
use weft_agent::kernel::{Kernel, OpenError, ProxyCgroup, Remains, cgroups, programs_on_hooks};
use weft_common::CONFIG_READY;

use crate::fixture::{self, Fixture, pod, tables};

#[test]
fn loads_and_attaches_every_program() {
    let fixture = Fixture::new();
    let kernel = fixture.open();
    assert!(!kernel.adopted());
    assert_eq!(kernel.highest_id(), 0);
    assert_eq!(kernel.config().flags & CONFIG_READY, 0, "nothing is applied yet");
    let status = kernel.status().unwrap();
    assert_eq!(status.on_pods_cgroup.len(), 11);
    for (hook, programs) in &status.on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook}");
    }
    let ids: BTreeSet<u32> = status.programs.iter().map(|program| program.id).collect();
    assert_eq!(ids.len(), status.programs.len());
    println!("{status:#?}");
}

#[test]
fn a_second_agent_is_refused() {
    let fixture = Fixture::new();
    let _first = fixture.open();
    let error = Kernel::open(fixture.options()).unwrap_err();
    assert!(matches!(error, OpenError::AnotherAgent { .. }), "{error}");
    assert!(error.to_string().contains(fixture.pins.to_str().unwrap()));
}

#[test]
fn an_agent_adopts_what_an_earlier_one_has_left() {
    let fixture = Fixture::new();
    let mut first = fixture.open();
    let wanted = tables(vec![pod(7, "a", "10.9.0.1", 40)], 40, true);
    let applied = first.apply(&wanted).unwrap();
    assert_eq!(applied.generation, 1);
    first.bind_cgroup(4711, 7).unwrap();
    let before = first.status().unwrap();
    drop(first);

    let mut second = fixture.open();
    assert!(second.adopted());
    let after = second.status().unwrap();
    assert_eq!(after.generation, 1, "the earlier policy is in force");
    assert_eq!(second.highest_id(), 100);
    assert_eq!(second.bound_cgroups().get(&4711), Some(&7));
    for (hook, programs) in &after.on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook} is attached once");
        assert_ne!(programs, &before.on_pods_cgroup[hook], "{hook} is a new program");
    }
    let again = second.apply(&wanted).unwrap();
    assert_eq!((again.written, again.deleted), (0, 0), "nothing has changed");
    assert_eq!(again.generation, 2);

    let empty = second.apply(&tables(vec![], 40, true)).unwrap();
    assert_eq!((empty.written, empty.deleted), (0, 3), "the pod, its address and its cgroup");
    assert!(second.bound_cgroups().is_empty());
}

#[test]
fn programs_come_to_a_root_that_was_made_anew() {
    let fixture = Fixture::new();
    let mut kernel = fixture.open();
    std::fs::remove_dir(&fixture.root).unwrap();
    kernel.follow_pods_cgroup().unwrap_err();
    std::fs::create_dir(&fixture.root).unwrap();
    let attached = |kernel: &Kernel| -> Vec<usize> {
        kernel.status().unwrap().on_pods_cgroup.values().map(Vec::len).collect()
    };
    assert_eq!(attached(&kernel), [0; 11], "they have gone with it");
    for _ in 0..2 {
        kernel.follow_pods_cgroup().unwrap();
        assert_eq!(attached(&kernel), [1; 11]);
    }
    let root = cgroups::id_of(&fixture.root).unwrap();
    assert_eq!(kernel.config().root_cgroup, root);
    drop(kernel);
    assert_eq!(attached(&fixture.open()), [1; 11]);
}

#[test]
fn another_cgroup_takes_the_links_over() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let _held = open_links(&fixture.pins);
    let other = fixture.cgroup("other");
    let mut options = fixture.options();
    options.pods_cgroup = other;
    let kernel = fixture::open(&options);
    for (hook, programs) in &kernel.status().unwrap().on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook}");
    }
    drop(kernel);
    for (hook, programs) in &fixture.open().status().unwrap().on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook}");
    }
}

#[test]
fn what_another_layout_has_left_is_removed() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let _held = open_links(&fixture.pins);
    let own = std::fs::read_dir(&fixture.pins).unwrap().next().unwrap().unwrap().path();
    let other = fixture.pins.join("layout-0-00000000");
    std::fs::rename(&own, &other).unwrap();
    let kernel = fixture.open();
    assert!(!kernel.adopted());
    assert!(!other.exists());
    for (hook, programs) in &kernel.status().unwrap().on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook}");
    }
}

/// Every link that is pinned below a directory. A link that somebody has open outlives its pin.
fn open_links(directory: &Path) -> Vec<PinnedLink> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(open_links(&path));
        } else {
            found.extend(PinnedLink::from_pin(&path));
        }
    }
    found
}

#[test]
fn remove_leaves_nothing() {
    let fixture = Fixture::new();
    drop(fixture.open());
    let _held = open_links(&fixture.pins);
    let attached = || programs_on_hooks(&fixture.root).unwrap().into_iter();
    assert_ne!(attached().filter(|program| program.cgroup == fixture.root).count(), 0);
    fixture::remove(&fixture.pins);
    assert!(!fixture.pins.exists());
    assert_eq!(attached().find(|program| program.cgroup == fixture.root), None);
    fixture::remove(&fixture.pins);
}

#[test]
fn an_adopted_map_gets_another_size_and_keeps_its_entries() {
    let fixture = Fixture::new();
    let open = |size| {
        let mut options = fixture.options();
        options.map_sizes.set("ADDRESSES", size);
        fixture::open(&options)
    };
    let one = tables(vec![pod(7, "a", "10.9.0.1", 40)], 40, true);
    let two = tables(vec![pod(7, "a", "10.9.0.1", 40), pod(8, "b", "10.9.0.2", 40)], 40, true);
    let use_of = |kernel: &Kernel| {
        let maps = kernel.status().unwrap().maps;
        let map = maps.into_iter().find(|map| map.name == "ADDRESSES").unwrap();
        (map.entries, map.capacity)
    };

    let mut kernel = open(1);
    kernel.apply(&one).unwrap();
    kernel.apply(&two).unwrap_err();
    drop(kernel);
    let mut kernel = open(100);
    assert_eq!(use_of(&kernel), (Some(1), 100));
    assert_eq!(kernel.apply(&two).unwrap().written, 2);
    drop(kernel);
    // Two entries do not fit one place: the map keeps its size.
    assert_eq!(use_of(&open(1)), (Some(2), 100));
    assert_eq!(use_of(&open(2)), (Some(2), 2));
    for (hook, programs) in &open(2).status().unwrap().on_pods_cgroup {
        assert_eq!(programs.len(), 1, "{hook}");
    }
}

/// How many of the proxy's programs are attached, and where.
fn proxy_programs(kernel: &Kernel) -> BTreeSet<String> {
    let programs = kernel.status().unwrap().programs.into_iter();
    programs
        .filter(|program| program.name.starts_with("proxy_"))
        .map(|program| format!("{} {}", program.name, program.attached_to))
        .collect()
}

#[test]
fn the_proxys_programs_follow_its_cgroup() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.proxy_cgroup = ProxyCgroup::Awaited;
    let mut kernel = fixture::open(&options);
    assert!(proxy_programs(&kernel).is_empty(), "nobody has connected");
    // The container is started, and started again.
    let [first, second] = ["first", "second"].map(|name| fixture.cgroup(name));
    for cgroup in [&first, &second] {
        kernel.attach_proxy(cgroup).unwrap();
        let attached = proxy_programs(&kernel);
        assert_eq!(attached.len(), 5);
        let path = cgroup.to_str().unwrap();
        assert!(attached.iter().all(|program| program.ends_with(path)), "{attached:?}");
    }
    let held = Remains::pinned_under(&fixture.pins).unwrap();
    drop(kernel);
    // The agent alone is started again: its programs take the place of the earlier ones, and the
    // links stay where they are.
    let kernel = fixture::open(&options);
    assert!(kernel.adopted());
    assert_eq!(Remains::pinned_under(&fixture.pins).unwrap().links, held.links);
    drop(kernel);
    fixture::remove(&fixture.pins);
    weft_tests::eventually("everything to be freed", || {
        held.left().unwrap().is_empty().then_some(())
    })
    .unwrap();
}
