use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use weft_common::{
    Endpoint, FLOW_ACCELERATED, FLOW_EGRESS, FLOW_PROVEN, FlowEvent, FlowKind, Path, PodId, Reason,
};
use weft_model::mesh::Origin;
use weft_proto::v1::{Flow, Peer, Rule};

use crate::snapshot::{Addresses, PodName, Snapshots};

/// Gives events their names.
pub struct Enricher {
    node: Arc<str>,
    snapshots: Arc<Snapshots>,
    /// The Unix epoch's time when CLOCK_MONOTONIC was 0.
    boot: Duration,
    /// The addresses that were looked at last.
    addresses: Option<(u32, Arc<Addresses>)>,
}

impl Enricher {
    /// For events of this node.
    pub fn new(node: Arc<str>, snapshots: Arc<Snapshots>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic = clock_gettime(ClockId::Monotonic);
        let since_boot = Duration::new(
            u64::try_from(monotonic.tv_sec).unwrap_or_default(),
            u32::try_from(monotonic.tv_nsec).unwrap_or_default(),
        );
        Self { node, snapshots, boot: now.saturating_sub(since_boot), addresses: None }
    }

    /// The event as tools see it.
    pub fn enrich(&mut self, event: &FlowEvent) -> Flow {
        let addresses = self.addresses(event.generation);
        let proven = event.flags & FLOW_PROVEN != 0;
        // On both paths the far end is the very pod that was meant: the kernel says so, or its
        // certificate.
        let reached = proven
            && event.decision.allows()
            && (event.path == Path::Direct as u8 || event.path == Path::Tunnel as u8);
        let time = self.boot + Duration::from_nanos(event.time);
        let dialled = socket(event.dialled);
        let unchanged =
            dialled == socket(event.destination) || event.dialled.address.is_unspecified();
        Flow {
            time: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            event: event_text(event.kind).to_owned(),
            verdict: verdict_text(event).to_owned(),
            path: path_text(event.path).to_owned(),
            protocol: protocol_text(event.protocol),
            source: Some(self.peer(&addresses, event.source, event.source_pod, proven)),
            destination: Some(self.peer(
                &addresses,
                event.destination,
                event.destination_pod,
                reached,
            )),
            dialled: if unchanged { String::new() } else { dialled.to_string() },
            service: addresses.service(dialled.ip()).map(ToString::to_string).unwrap_or_default(),
            reason: reason_text(event.decision.reason).to_owned(),
            rule: self.snapshots.rule(event.decision.rule).map(|origin| rule(&origin)),
            bytes_out: event.bytes_out,
            bytes_in: event.bytes_in,
            duration: event.duration,
            accelerated: event.flags & FLOW_ACCELERATED != 0,
            node: self.node.to_string(),
            direction: if event.flags & FLOW_EGRESS != 0 { "egress" } else { "ingress" }.to_owned(),
        }
    }

    fn addresses(&mut self, generation: u32) -> Arc<Addresses> {
        match &self.addresses {
            Some((known, addresses)) if *known == generation => addresses.clone(),
            _ => {
                let addresses = self.snapshots.addresses(generation);
                self.addresses = Some((generation, addresses.clone()));
                addresses
            }
        }
    }

    /// Forgets what was looked at last: a newer snapshot may know better.
    pub fn refresh(&mut self) {
        self.addresses = None;
    }

    fn peer(&self, addresses: &Addresses, end: Endpoint, pod: PodId, proven: bool) -> Peer {
        let socket = socket(end);
        let by_id: Option<Arc<PodName>> = if pod == 0 { None } else { self.snapshots.pod(pod) };
        let named = by_id.or_else(|| addresses.pod(socket.ip()).map(Arc::new));
        let node = || addresses.node(socket.ip()).map(|node| format!("node:{node}"));
        Peer {
            address: socket.ip().to_string(),
            port: end.port,
            namespace: named.as_ref().map(|pod| pod.name.namespace.to_string()).unwrap_or_default(),
            pod: named
                .as_ref()
                .map(|pod| pod.name.name.to_string())
                .or_else(node)
                .unwrap_or_default(),
            identity: named
                .filter(|_| proven)
                .map(|pod| pod.identity.to_string())
                .unwrap_or_default(),
        }
    }
}

/// An endpoint of the kernel's.
pub(super) fn socket(end: Endpoint) -> SocketAddr {
    SocketAddr::new(IpAddr::from(end.address), u16::try_from(end.port).unwrap_or_default())
}

/// An origin, as tools see it.
pub fn rule(origin: &Origin) -> Rule {
    Rule {
        kind: origin.object.kind.to_string(),
        namespace: origin.object.name.namespace.to_string(),
        name: origin.object.name.name.to_string(),
        field: origin.field.to_string(),
        file: origin
            .location
            .as_ref()
            .map(|location| location.file.to_string())
            .unwrap_or_default(),
        line: origin.location.as_ref().map(|location| location.line).unwrap_or_default(),
    }
}

fn event_text(kind: u8) -> &'static str {
    match kind {
        kind if kind == FlowKind::Open as u8 => "open",
        kind if kind == FlowKind::Denied as u8 => "denied",
        kind if kind == FlowKind::Close as u8 => "close",
        kind if kind == FlowKind::Cut as u8 => "cut",
        _ => "unknown",
    }
}

/// Allowed or denied.
pub(super) fn verdict_text(event: &FlowEvent) -> &'static str {
    let refused = event.kind == FlowKind::Denied as u8 || event.kind == FlowKind::Cut as u8;
    if refused || !event.decision.allows() { "denied" } else { "allowed" }
}

/// The path's name.
pub fn path_text(path: u8) -> &'static str {
    match path {
        path if path == Path::Untouched as u8 => "untouched",
        path if path == Path::Direct as u8 => "direct",
        path if path == Path::Tunnel as u8 => "tunnel",
        path if path == Path::L7 as u8 => "l7",
        _ => "unknown",
    }
}

fn protocol_text(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// A reason in words.
pub fn reason_text(reason: u32) -> &'static str {
    const REASONS: [(Reason, &str); 17] = [
        (Reason::Unrestricted, "no policy restricts it"),
        (Reason::Rule, "a rule allows it"),
        (Reason::OwnNode, "the pod's own node may reach it"),
        (Reason::Related, "belongs to an allowed flow"),
        (Reason::Established, "was there before the pod was enrolled"),
        (Reason::RuleDenies, "a rule denies it"),
        (Reason::NoRule, "no rule allows it"),
        (Reason::NotProven, "mTLS is required, and the peer's identity is not proven"),
        (Reason::NeedsHttp, "the rule would have to inspect HTTP"),
        (Reason::UnknownPod, "the pod is not known yet"),
        (Reason::ForgedSource, "the source address is not the pod's"),
        (Reason::ConnectionLimit, "the pod has as many connections as it may"),
        (Reason::NoEndpoint, "the service has no endpoint"),
        (Reason::ProxyPort, "the port is the node proxy's own"),
        (Reason::MissingTable, "a table lacks an entry (an error of Weft)"),
        (Reason::MapFull, "a map is full"),
        (Reason::Unsupported, "the rule asks for what Weft does not support"),
    ];
    REASONS
        .iter()
        .find(|(known, _)| *known as u32 == reason)
        .map_or("for a reason that this version does not know", |(_, text)| text)
}
