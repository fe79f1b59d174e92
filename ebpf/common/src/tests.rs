use core::net::IpAddr;

use crate::{
    ANY_CLASS, Address, Connection, ConnectionKey, Decision, PolicyEntry, PolicyKey, PortKey,
    Reason, SocketKey, SocketState, Tables, judge,
};

fn address(text: &str) -> Address {
    let ip: IpAddr = text.parse().expect("an address");
    ip.into()
}

fn socket(local: &str, local_port: u16, remote: &str, remote_port: u16) -> SocketKey {
    SocketKey { local: address(local), remote: address(remote), local_port, remote_port }
}

#[test]
fn both_ends_of_a_connection_have_one_key() {
    let addresses = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd00::2", "fd01::1"];
    for local in addresses {
        for remote in addresses {
            for (local_port, remote_port) in [(1, 2), (2, 1), (40_000, 80)] {
                let own = socket(local, local_port, remote, remote_port);
                let (key, low) = own.connection();
                let (other_key, other_low) = own.reversed().connection();
                assert_eq!(key, other_key, "{own:?}");
                assert_ne!(low, other_low, "{own:?}");
                let lower = if low { own } else { own.reversed() };
                assert_eq!((key.low, key.low_port), (lower.local, lower.local_port));
                assert_eq!((key.high, key.high_port), (lower.remote, lower.remote_port));
            }
        }
    }
}

#[test]
fn connections_differ_by_each_of_their_four_parts() {
    let own = socket("10.0.0.1", 1000, "10.0.0.2", 80);
    let (key, _) = own.connection();
    for other in [
        socket("10.0.0.3", 1000, "10.0.0.2", 80),
        socket("10.0.0.1", 1001, "10.0.0.2", 80),
        socket("10.0.0.1", 1000, "10.0.0.4", 80),
        socket("10.0.0.1", 1000, "10.0.0.2", 81),
        socket("10.0.0.1", 80, "10.0.0.2", 1000),
    ] {
        assert_ne!(key, other.connection().0, "{other:?}");
    }
    let (same, _) = ConnectionKey::between(&own.remote, 80, &own.local, 1000);
    assert_eq!(key, same);
}

#[test]
fn addresses_are_what_they_were() {
    for text in ["10.0.0.1", "127.0.0.1", "::1", "fd00::1", "::", "0.0.0.0"] {
        let ip: IpAddr = text.parse().expect("an address");
        let address = Address::from(ip);
        assert_eq!(IpAddr::from(address), ip);
        assert_eq!(address.is_v4(), ip.is_ipv4(), "{text}");
        assert_eq!(address.is_loopback(), ip.is_loopback(), "{text}");
        assert_eq!(address.is_unspecified(), ip.is_unspecified(), "{text}");
    }
    assert_eq!(Address::from_v4(u32::from_ne_bytes([10, 0, 0, 1])), address("10.0.0.1"));
}

#[test]
fn values_fit_what_the_kernel_makes_of_them() {
    // A record is a value of a hash map, whose values are aligned to eight bytes.
    assert_eq!(size_of::<Connection>() % 8, 0);
    assert_eq!(align_of::<Connection>(), 8);
    assert_eq!(size_of::<SocketState>(), 88);
    assert_eq!(size_of::<ConnectionKey>(), 36);
}

struct OneSubject;

const SUBJECT: u32 = 7;
const KNOWN: u32 = 3;

impl Tables for OneSubject {
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry> {
        if key.subject != SUBJECT {
            return None;
        }
        let decision = match key.peer {
            peer if peer == KNOWN << 1 | 1 => Decision::of(1, Reason::Rule),
            peer if peer == ANY_CLASS << 1 | 1 => Decision::of(2, Reason::RuleDenies),
            peer if peer == KNOWN << 1 => return Some(PolicyEntry { ports: 9, decision: DENIED }),
            _ => return None,
        };
        Some(PolicyEntry { ports: 0, decision })
    }

    fn ports(&self, key: &PortKey) -> Option<Decision> {
        (key.table == 9 && key.port == [0, 80]).then_some(Decision::of(4, Reason::Rule))
    }
}

const DENIED: Decision = Decision::because(Reason::NoRule);

#[test]
fn the_judge_looks_at_the_class_then_at_all_and_denies_what_is_missing() {
    let ask = |subject, class, proven, port| judge(&OneSubject, subject, class, proven, 6, port);
    assert_eq!(ask(0, KNOWN, false, 1), Decision::because(Reason::Unrestricted));
    assert_eq!(ask(SUBJECT, KNOWN, true, 1).rule, 1);
    assert_eq!(ask(SUBJECT, KNOWN + 1, true, 1), Decision::of(2, Reason::RuleDenies));
    assert_eq!(ask(SUBJECT, KNOWN, false, 80).rule, 4);
    let missing = Decision::because(Reason::MissingTable);
    assert_eq!(ask(SUBJECT, KNOWN, false, 81), missing);
    assert_eq!(ask(SUBJECT, KNOWN + 1, false, 80), missing);
    assert_eq!(ask(SUBJECT + 1, KNOWN, true, 80), missing);
    assert!(!missing.allows());
}
