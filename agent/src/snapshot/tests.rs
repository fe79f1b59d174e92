use std::net::IpAddr;

use super::addresses::REMEMBERED_GENERATIONS;
use super::*;
use crate::flows::test_support::{mesh, pod, publish};

#[test]
fn the_first_pod_by_name_has_an_address_that_several_claim() {
    let snapshots = Snapshots::default();
    let mesh = mesh(&(pod("b", "n1", &["10.0.0.1"]) + &pod("a", "n1", &["10.0.0.1"])));
    publish(&snapshots, 1, &mesh, Tables::default());
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    assert_eq!(&*snapshots.addresses(1).pod(address).unwrap().name.name, "a");
}

#[test]
fn only_so_many_generations_are_remembered() {
    let snapshots = Snapshots::default();
    let mesh = mesh(&pod("a", "n1", &["10.0.0.1"]));
    for generation in 1..=100 {
        publish(&snapshots, generation, &mesh, Tables::default());
    }
    assert_eq!(snapshots.history().len(), REMEMBERED_GENERATIONS);
    assert_eq!(snapshots.addresses(50).generation, 69, "the oldest that is there");
    assert_eq!(snapshots.addresses(90).generation, 90);
    assert_eq!(snapshots.addresses(200).generation, 100);
    assert_eq!(snapshots.current().unwrap().generation, 100);
}

#[test]
fn an_address_had_the_pod_that_it_had_then() {
    let snapshots = Snapshots::default();
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let at = |name: &str| mesh(&pod(name, "n1", &["10.0.0.1"]));
    let nobody = mesh(&pod("other", "n1", &["10.0.0.2"]));
    for (generation, mesh) in [(1, at("a")), (2, at("b")), (3, nobody), (4, at("c"))] {
        publish(&snapshots, generation, &mesh, Tables::default());
    }
    let had = |generation: u32| {
        let pod = snapshots.addresses(generation).pod(address);
        pod.map(|pod| pod.name.name.to_string())
    };
    let had: Vec<_> = (1..=5).map(had).collect();
    let some = |name: &str| Some(name.to_owned());
    assert_eq!(had, [some("a"), some("b"), None, some("c"), some("c")]);
}

#[test]
fn the_oldest_ids_go_first_but_never_those_in_use() {
    let mut ids: BTreeMap<u32, ()> = (0..REMEMBERED_IDS as u32 + 3).map(|id| (id, ())).collect();
    forget(&mut ids, |id| *id == 1);
    assert_eq!(ids.len(), REMEMBERED_IDS);
    assert!(!ids.contains_key(&0) && ids.contains_key(&1) && !ids.contains_key(&2));
}
