use std::collections::BTreeMap;

use weft_common::{
    Address, AddressEntry, Decision, Pod, PodId, PolicyEntry, PolicyKey, PortKey, Reason,
};
use weft_model::compile::{LocalPod, Tables};
use weft_model::mesh::Name;

use super::{bridge, key, masked};
use crate::kernel::Installed;

/// Tables whose subject allows one class and denies the others.
fn tables(subject: u32, classes: [u32; 2], addresses: [&str; 2], ports: u32) -> Tables {
    let denied = PolicyEntry { ports: 0, decision: Decision::because(Reason::NoRule) };
    let allowed = PolicyEntry { ports, decision: Decision::because(Reason::Rule) };
    let mut tables = Tables::default();
    for (class, address) in classes.into_iter().zip(addresses) {
        let entry = AddressEntry { class, ..AddressEntry::default() };
        tables.addresses.insert((128, address_of(address)), entry);
    }
    for proven in [false, true] {
        tables.policy.insert(key(subject, 0, proven), denied);
        tables.policy.insert(key(subject, classes[0], proven), allowed);
    }
    let decision = Decision::because(Reason::Rule);
    tables.ports.insert((56, PortKey::new(ports, 6, 80)), decision);
    let entry = Pod { ingress_subject: subject, ..Pod::default() };
    let name = Name { namespace: "shop".into(), name: "web".into() };
    tables.pods.insert(name, LocalPod { id: 1, uid: "uid".into(), entry });
    tables
}

fn address_of(text: &str) -> Address {
    text.parse::<std::net::IpAddr>().unwrap().into()
}

fn pods(tables: &Tables) -> BTreeMap<PodId, Pod> {
    tables.pods.values().map(|pod| (pod.id, pod.entry)).collect()
}

struct InMemory<'a>(&'a Tables, &'a Tables);

impl weft_common::Tables for InMemory<'_> {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        let key = (key.subject, key.peer);
        self.0.policy.get(&key).or_else(|| self.1.policy.get(&key)).copied()
    }

    fn ports(&self, key: &PortKey) -> Option<Decision> {
        let key = (56, *key);
        self.0.ports.get(&key).or_else(|| self.1.ports.get(&key)).copied()
    }
}

fn takeover(before: &Tables, after: &Tables) -> Option<Tables> {
    let pods = pods(before);
    let installed = Installed {
        addresses: &before.addresses,
        policy: &before.policy,
        ports: &before.ports,
        pods: &pods,
    };
    bridge(&installed, after)
}

#[test]
fn subjects_and_classes_of_two_agents_understand_each_other() {
    let before = tables(10, [20, 21], ["10.0.0.1", "10.0.0.2"], 30);
    let after = tables(110, [120, 121], ["10.0.0.1", "10.0.0.2"], 130);
    let bridged = takeover(&before, &after).unwrap();
    // While both are in the kernel, every pair decides as its address always has.
    let both = InMemory(&bridged, &before);
    for subject in [10, 110] {
        for (class, allowed) in [(20, true), (120, true), (21, false), (121, false)] {
            let decision = weft_common::judge(&both, subject, class, true, 6, 80);
            assert_eq!(decision.allows(), allowed, "{subject} {class}");
        }
    }
    // The port table that an added entry refers to outlives the earlier policy.
    let alone = InMemory(&bridged, &bridged);
    assert!(weft_common::judge(&alone, 10, 120, false, 6, 80).allows());
}

#[test]
fn without_an_earlier_agent_nothing_is_added() {
    let after = tables(110, [120, 121], ["10.0.0.1", "10.0.0.2"], 130);
    assert_eq!(takeover(&Tables::default(), &after), None);
}

#[test]
fn prefixes_are_masked_as_the_kernel_does() {
    let address = address_of("2001:db8::1");
    assert_eq!(masked(address, 128), 0x2001_0db8_0000_0000_0000_0000_0000_0001);
    assert_eq!(masked(address, 16), 0x2001 << 112);
    assert_eq!(masked(address, 0), 0);
}
