use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use weft_common::{POD_OF_THE_MESH, PodId};
use weft_model::compile::{LocalPod, Tables};
use weft_model::mesh::Name;

use super::bindings::{Bindings, Changes};
use super::own_node::OwnNode;
use super::{identities, node_settings};
use crate::flows::test_support::{mesh, pod, service};
use crate::kernel::{CgroupEvent, PodCgroup, Settings};

fn cgroup(uid: &str, id: u64) -> PodCgroup {
    PodCgroup { uid: uid.into(), id, path: PathBuf::from(format!("/cg/kubepods/pod{uid}")) }
}

fn tables(pods: &[(&str, PodId)]) -> Tables {
    Tables {
        pods: pods
            .iter()
            .map(|(name, id)| {
                let local = LocalPod {
                    id: *id,
                    uid: format!("uid-{name}").into(),
                    entry: weft_common::Pod::default(),
                };
                (Name { namespace: "shop".into(), name: (*name).into() }, local)
            })
            .collect(),
        ..Tables::default()
    }
}

#[test]
fn a_pod_is_bound_whichever_comes_first_its_cgroup_or_its_manifest() {
    let mut bindings = Bindings::new(Vec::new());
    let nothing = BTreeMap::new();
    bindings.take(CgroupEvent::Added(cgroup("uid-web", 10)));
    assert_eq!(bindings.changes(&tables(&[]), &nothing), Changes::default());
    assert_eq!(bindings.unknown(&tables(&[])).len(), 1);

    let both = tables(&[("web", 1), ("api", 2)]);
    assert_eq!(bindings.changes(&both, &nothing).bind, [(10, 1)]);
    assert_eq!(bindings.pending(&both).len(), 1);
    bindings.take(CgroupEvent::Added(cgroup("uid-api", 11)));
    let bound = BTreeMap::from([(10, 1)]);
    assert_eq!(bindings.changes(&both, &bound), Changes { bind: vec![(11, 2)], unbind: vec![] });
    assert!(bindings.pending(&both).is_empty() && bindings.unknown(&both).is_empty());
}

#[test]
fn what_has_gone_is_unbound_and_a_new_pod_of_the_name_is_another() {
    let mut bindings = Bindings::new(Vec::new());
    bindings.take(CgroupEvent::Added(cgroup("uid-web", 10)));
    let bound = BTreeMap::from([(10, 1), (99, 7)]);
    let changes = bindings.changes(&tables(&[("web", 1)]), &bound);
    assert_eq!(changes, Changes { bind: vec![], unbind: vec![99] });
    let changes = bindings.changes(&tables(&[("web", 3)]), &bound);
    assert_eq!(changes, Changes { bind: vec![(10, 3)], unbind: vec![99] });
    bindings.take(CgroupEvent::Removed(cgroup("uid-web", 10)));
    let changes = bindings.changes(&tables(&[("web", 3)]), &BTreeMap::from([(10, 3)]));
    assert_eq!(changes.unbind, [10]);
}

#[test]
fn the_mesh_s_own_pods_are_known_by_their_cgroups() {
    let proxy = PathBuf::from("/cg/kubepods/poduid-proxy/container");
    let mut bindings = Bindings::new(vec![proxy]);
    bindings.take(CgroupEvent::Added(cgroup("uid-proxy", 20)));
    bindings.take(CgroupEvent::Added(cgroup("uid-proxy-2", 21)));
    let changes = bindings.changes(&tables(&[("proxy", 5)]), &BTreeMap::new());
    assert_eq!(changes.bind, [(20, POD_OF_THE_MESH)]);
}

#[test]
fn pods_that_are_bound_already_keep_their_ids() {
    let mut bindings = Bindings::new(Vec::new());
    bindings.take(CgroupEvent::Added(cgroup("uid-web", 10)));
    bindings.take(CgroupEvent::Added(cgroup("uid-api", 11)));
    let mesh = mesh(&(pod("web", "n1", &["10.0.0.1"]) + &pod("api", "n2", &["10.0.1.1"])));
    let bound = BTreeMap::from([(10, 42), (11, 43), (12, POD_OF_THE_MESH)]);
    let adopted = bindings.pods(&mesh, "n1", &bound);
    let adopted: Vec<_> = adopted.iter().map(|(pod, id)| (&*pod.name.name, *id)).collect();
    assert_eq!(adopted, [("web", 42)], "of this node");
}

#[test]
fn certificates_are_for_identities_of_pods_on_this_node() {
    let mesh = mesh(
        &(pod("web", "n1", &["10.0.0.1"])
            + &pod("api", "n2", &["10.0.1.1"])
            + &pod("out", "n1", &["10.0.0.2"]).replace("enabled", "disabled")),
    );
    let wanted: Vec<_> =
        identities(&mesh, "n1").iter().map(|identity| identity.to_string()).collect();
    assert_eq!(wanted, ["spiffe://cluster.local/ns/shop/sa/web"]);
}

#[test]
fn the_proxy_listens_at_the_first_address_of_each_family() {
    let mesh = mesh(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\nstatus:\n  addresses:\n  - type: \
         InternalIP\n    address: 2001:db8::1\n  - type: InternalIP\n    address: 192.0.2.1\n  - \
         type: InternalIP\n    address: 192.0.2.9\n",
    );
    let settings = node_settings(&Settings::default(), &mesh, "n1");
    assert_eq!(settings.node_v4, Some(Ipv4Addr::new(192, 0, 2, 1)));
    assert_eq!(settings.node_v6.map(IpAddr::V6), "2001:db8::1".parse().ok());
    let elsewhere = node_settings(&settings, &mesh, "n2");
    assert_eq!((elsewhere.node_v4, elsewhere.node_v6), (None, None::<Ipv6Addr>));
}

#[test]
fn the_node_has_its_interfaces_addresses_behind_those_of_its_manifest() {
    let node = "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\nstatus:\n  \
                addresses:\n  - {type: InternalIP, address: 192.168.0.7}\n";
    let text = [node, &pod("web", "node-a", &["10.244.1.2"]), &service("web", "10.96.0.1")];
    let declared = Arc::new(mesh(&text.concat()));
    let mut own = OwnNode::default();
    assert!(Arc::ptr_eq(&own.added_to(&declared, "node-a"), &declared));

    // An address of a pod, and a service's, stay theirs.
    let read = ["10.244.1.1", "10.244.1.2", "10.96.0.1", "192.168.0.7", "fd00::1"];
    let read: BTreeSet<IpAddr> = read.iter().map(|one| one.parse().unwrap()).collect();
    assert!(own.set(read.clone()));
    assert!(!own.set(read));
    let made = own.added_to(&declared, "node-a");
    let addresses: Vec<String> =
        made.nodes["node-a"].addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.168.0.7", "10.244.1.1", "fd00::1"]);
    assert!(Arc::ptr_eq(&own.added_to(&declared, "node-a"), &made));
    let elsewhere = Arc::new(mesh(&pod("web", "node-a", &["10.244.1.2"])));
    assert!(Arc::ptr_eq(&own.added_to(&elsewhere, "node-a"), &elsewhere), "it has no Node");
}

#[test]
fn a_pod_has_its_interfaces_addresses_until_its_manifest_says_them() {
    let known = pod("web", "node-a", &["10.244.1.2"]);
    let new = pod("new", "node-a", &[]);
    let declared = Arc::new(mesh(&(known + &new)));
    let name = |name: &str| Name { namespace: "shop".into(), name: name.into() };
    let uid = declared.pods[&name("new")].uid.clone();
    let addresses = |found: &[&str]| -> BTreeSet<IpAddr> {
        found.iter().map(|one| one.parse().unwrap()).collect()
    };
    let mut own = OwnNode::default();
    assert!(!own.set_pod(&uid, &addresses(&[])));
    assert!(own.set_pod(&uid, &addresses(&["10.244.1.3"])));
    assert!(!own.set_pod(&uid, &addresses(&["10.244.1.3"])));
    let made = own.added_to(&declared, "node-a");
    assert_eq!(made.pods[&name("new")].addresses, [IpAddr::from([10, 244, 1, 3])]);

    // Nobody gets another's.
    assert!(own.set_pod(&uid, &addresses(&["10.244.1.2"])));
    let made = own.added_to(&declared, "node-a");
    assert!(made.pods[&name("new")].addresses.is_empty());
    assert!(own.set_pod(&uid, &addresses(&["10.244.1.4"])));
    assert!(own.set_pod(&"another".into(), &addresses(&["10.244.1.4"])));
    let made = own.added_to(&declared, "node-a");
    assert!(made.pods[&name("new")].addresses.is_empty(), "two have it");
    own.retain_pods([&uid].into_iter());
    assert!(own.set_pod(&"another".into(), &addresses(&["10.244.1.5"])));
}
