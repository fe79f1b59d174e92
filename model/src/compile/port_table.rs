//! Port tables: what is decided for each protocol and port, as longest prefixes.

use std::collections::HashMap;

use weft_common::Decision;

/// A protocol as policy tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Carrier {
    Icmp,
    Tcp,
    Udp,
    Sctp,
    /// Any other: only rules without ports speak of it.
    Other,
}

const WITH_PORTS: [(Carrier, u8); 3] =
    [(Carrier::Tcp, 6), (Carrier::Udp, 17), (Carrier::Sctp, 132)];
/// ICMP and ICMPv6 are one to policy.
const ICMP: [u8; 2] = [1, 58];

const TABLE_BITS: u8 = 32;
const PROTOCOL_BITS: u8 = TABLE_BITS + 8;

/// One entry of a table: how many bits of table, protocol and port are matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PortPrefix {
    pub(super) bits: u8,
    pub(super) protocol: u8,
    pub(super) port: u16,
    pub(super) decision: Decision,
}

/// What is decided, complete: a table always has an entry for everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PortTable {
    /// The same for every protocol and port.
    Uniform(Decision),
    /// By prefix; the first is the one for everything.
    Prefixes(Vec<PortPrefix>),
}

impl PortTable {
    /// Tabulates `decide`, which may change from one port to the next only at one of `starts`.
    pub(super) fn tabulate(
        starts: impl Fn(Carrier) -> Vec<u16>,
        decide: impl Fn(Carrier, u16) -> Decision,
    ) -> Self {
        let default = decide(Carrier::Other, 0);
        let everything = PortPrefix { bits: TABLE_BITS, protocol: 0, port: 0, decision: default };
        let mut prefixes = vec![everything];
        let icmp = decide(Carrier::Icmp, 0);
        if icmp != default {
            prefixes.extend(ICMP.map(|protocol| PortPrefix {
                bits: PROTOCOL_BITS,
                protocol,
                port: 0,
                decision: icmp,
            }));
        }
        for (carrier, protocol) in WITH_PORTS {
            let intervals = intervals(starts(carrier), |port| decide(carrier, port));
            add_protocol(&mut prefixes, protocol, &intervals, default);
        }
        if prefixes.len() == 1 { Self::Uniform(default) } else { Self::Prefixes(prefixes) }
    }
}

type Interval = (u16, u16, Decision);

fn intervals(mut starts: Vec<u16>, decide: impl Fn(u16) -> Decision) -> Vec<Interval> {
    starts.push(0);
    starts.sort_unstable();
    starts.dedup();
    let mut intervals: Vec<Interval> = Vec::with_capacity(starts.len());
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).map_or(u16::MAX, |next| next - 1);
        let decision = decide(*start);
        match intervals.last_mut() {
            Some(last) if last.2 == decision => last.1 = end,
            _ => intervals.push((*start, end, decision)),
        }
    }
    intervals
}

/// The decision that would take most prefixes is said once for the protocol, the others by
/// prefix.
fn add_protocol(
    prefixes: &mut Vec<PortPrefix>,
    protocol: u8,
    intervals: &[Interval],
    default: Decision,
) {
    let mut costs: HashMap<Decision, usize> = HashMap::new();
    for (start, end, decision) in intervals {
        *costs.entry(*decision).or_default() += aligned(*start, *end).count();
    }
    let most = costs.values().copied().max().unwrap_or(0);
    let base = intervals
        .iter()
        .map(|(_, _, decision)| *decision)
        .find(|decision| costs.get(decision) == Some(&most))
        .unwrap_or(default);
    if base != default {
        prefixes.push(PortPrefix { bits: PROTOCOL_BITS, protocol, port: 0, decision: base });
    }
    for (start, end, decision) in intervals.iter().filter(|(_, _, decision)| *decision != base) {
        prefixes.extend(aligned(*start, *end).map(|(port, length)| PortPrefix {
            bits: PROTOCOL_BITS + length,
            protocol,
            port,
            decision: *decision,
        }));
    }
}

/// The fewest aligned ranges of ports that make up `start..=end`, as first port and prefix
/// length.
fn aligned(start: u16, end: u16) -> impl Iterator<Item = (u16, u8)> {
    let end = u32::from(end);
    let mut next = u32::from(start);
    std::iter::from_fn(move || {
        if next > end {
            return None;
        }
        let first = next;
        let mut size = 1 << first.trailing_zeros().min(16);
        while first + size - 1 > end {
            size /= 2;
        }
        next = first + size;
        Some((first as u16, 16 - size.trailing_zeros() as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_the_fewest_prefixes() {
        let all: Vec<_> = aligned(0, u16::MAX).collect();
        assert_eq!(all, [(0, 0)]);
        let one: Vec<_> = aligned(80, 80).collect();
        assert_eq!(one, [(80, 16)]);
        let some: Vec<_> = aligned(1000, 2000).collect();
        let covered: u32 = some.iter().map(|(_, length)| 1u32 << (16 - length)).sum();
        assert_eq!(covered, 1001);
        assert_eq!(aligned(1, u16::MAX).count(), 16);
    }
}
