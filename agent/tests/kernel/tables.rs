use weft_agent::kernel::ApplyError;
use weft_common::AddressEntry;
use weft_model::compile::Tables;

use crate::fixture::{self, Fixture, host, pod, tables};

#[test]
fn a_change_writes_only_what_differs() {
    let fixture = Fixture::new();
    let mut kernel = fixture.open();
    let one = pod(7, "a", "10.9.0.1", 40);
    let first = kernel.apply(&tables(vec![one.clone()], 40, true)).unwrap();
    // A port table's entry, two of policy, an address and a pod.
    assert_eq!((first.written, first.deleted), (5, 0));

    let two = pod(8, "b", "10.9.0.2", 40);
    let second = kernel.apply(&tables(vec![one, two.clone()], 40, true)).unwrap();
    assert_eq!((second.written, second.deleted), (2, 0));

    let third = kernel.apply(&tables(vec![two], 40, true)).unwrap();
    assert_eq!((third.written, third.deleted), (0, 2));
    assert_eq!(third.generation, 3);
}

#[test]
fn a_full_map_leaves_the_last_good_state_in_force() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.map_sizes.set("ADDRESSES", 4);
    let mut kernel = fixture::open(&options);
    let good = tables(vec![pod(7, "a", "10.9.0.1", 40)], 40, true);
    kernel.apply(&good).unwrap();

    let mut big = tables(vec![pod(8, "b", "10.9.0.2", 50)], 50, true);
    for number in 0..4 {
        big.addresses.insert(
            host(&format!("10.8.0.{number}")),
            AddressEntry { class: 9, ..Default::default() },
        );
    }
    let error = kernel.apply(&big).unwrap_err();
    assert!(matches!(error, ApplyError::Full { map: "ADDRESSES", size: 4, .. }), "{error}");
    assert!(error.to_string().contains("--map-size ADDRESSES="), "{error}");
    assert_eq!(kernel.config().generation, 1);
    let same = kernel.apply(&good).unwrap();
    assert_eq!((same.written, same.deleted), (0, 0), "nothing of the failed change is left");
}

#[test]
fn a_map_that_fills_while_it_is_written_is_rolled_back() {
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.map_sizes.set("CGROUPS", 1);
    let mut kernel = fixture::open(&options);
    kernel.bind_cgroup(1, 7).unwrap();
    let error = kernel.bind_cgroup(2, 8).unwrap_err();
    assert!(matches!(error, ApplyError::Full { map: "CGROUPS", size: 1, needed: 2 }), "{error}");
    assert_eq!(kernel.bound_cgroups().len(), 1);
}

#[test]
fn many_entries_are_applied_in_little_time() {
    let fixture = Fixture::new();
    let mut kernel = fixture.open();
    let mut many = Tables::default();
    for number in 0..20_000u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        many.addresses
            .insert(host(&address.to_string()), AddressEntry { class: 9, ..Default::default() });
    }
    let start = std::time::Instant::now();
    kernel.apply(&many).unwrap();
    let all = start.elapsed();
    many.addresses.insert(host("10.200.0.1"), AddressEntry { class: 9, ..Default::default() });
    let start = std::time::Instant::now();
    assert_eq!(kernel.apply(&many).unwrap().written, 1);
    println!("20,000 entries: {all:?}, one more: {:?}", start.elapsed());
}
