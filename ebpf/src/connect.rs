//! `connect()`: who calls, whereto, may it, and on which path.

use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use weft_common::{
    ADDRESS_LOCAL, ADDRESS_MESHED, Address, AddressEntry, CONFIG_ACCELERATE, CONFIG_SAME_NODE_MTLS,
    Config, Counter, Decision, Endpoint, FLOW_EGRESS, FLOW_PROVEN, FlowKind, POD_ACCELERATE, Path,
    Pod, PodId, PortKey, Reason, SOCKET_ACCELERATE, SOCKET_CLIENT, SOCKET_HAS_SOURCE,
    SOCKET_OF_PROXY, SOCKET_PROVEN, SOCKET_SHOWS_PEER, Tables,
};

use crate::connection;
use crate::context::{self, Peer, TCP, UDP};
use crate::flow::{self, Flow};
use crate::identity::{self, Caller};
use crate::service::{self, Choice};
use crate::tables::{self, KernelTables};
use crate::udp;
use crate::verdict::{self, Between};

const ALLOW: i32 = 1;
/// The process gets EPERM, unless another error was set.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
pub fn pod_connect4(ctx: SockAddrContext) -> i32 {
    pod_connect(&ctx, &Peer::<false>(ctx.sock_addr))
}

#[cgroup_sock_addr(connect6)]
pub fn pod_connect6(ctx: SockAddrContext) -> i32 {
    pod_connect(&ctx, &Peer::<true>(ctx.sock_addr))
}

#[cgroup_sock_addr(connect4)]
pub fn proxy_connect4(ctx: SockAddrContext) -> i32 {
    proxy_connect(&ctx, &Peer::<false>(ctx.sock_addr))
}

#[cgroup_sock_addr(connect6)]
pub fn proxy_connect6(ctx: SockAddrContext) -> i32 {
    proxy_connect(&ctx, &Peer::<true>(ctx.sock_addr))
}

#[inline(always)]
fn pod_connect<const V6: bool>(ctx: &SockAddrContext, peer: &Peer<V6>) -> i32 {
    let protocol = peer.protocol();
    if protocol != TCP && protocol != UDP {
        return ALLOW;
    }
    let dialled = peer.endpoint();
    // The unspecified address leads to the pod itself, too.
    if dialled.address.is_loopback() || dialled.address.is_unspecified() {
        return ALLOW;
    }
    let Some(config) = tables::config() else { return DENY };
    let (id, pod) = match identity::of_current(config) {
        Caller::Enrolled(id, pod) => (id, pod),
        Caller::Other => return ALLOW,
        Caller::Unknown => {
            let attempt = Attempt { id: 0, source: Address::UNSPECIFIED, protocol, dialled };
            return attempt.refuse_untouched(config, Reason::UnknownPod);
        }
    };
    let source = verdict::address_of(pod, dialled.address.is_v4());
    let attempt = Attempt { id, source, protocol, dialled };

    let (backend, backends) = match service::choose(&dialled, protocol, id) {
        Choice::NoService => (dialled, 0),
        Choice::Backend { backend, backends } => (backend, backends),
        Choice::NoEndpoint => {
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            return attempt.refuse_untouched(config, Reason::NoEndpoint);
        }
    };
    if !peer.can_hold(&backend.address) {
        unsafe { bpf_set_retval(-ECONNREFUSED) };
        return attempt.refuse_untouched(config, Reason::NoEndpoint);
    }

    let entry = tables::address(&backend.address);
    let server = verdict::local_pod(&entry);
    let path =
        if protocol == TCP { path(config, &entry, &backend) } else { Path::Untouched as u32 };
    let decision = if verdict::is_proxy_port(config, &backend) {
        Decision::because(Reason::ProxyPort)
    } else {
        judge(config, &attempt, pod, &backend, &entry, server)
    };
    if !decision.allows() {
        debug!(ctx, "pod {}: connect refused, reason {}", id, decision.reason);
        return attempt.refuse(config, &backend, server, path, decision);
    }

    if protocol == UDP {
        if backends != 0 {
            if udp::remember(peer.socket(), &dialled, &backend, backends).is_none() {
                return DENY;
            }
            peer.set(&backend);
        }
        return ALLOW;
    }

    let mut flags = SOCKET_CLIENT;
    if path == Path::Direct as u32 {
        flags |= SOCKET_PROVEN;
    }
    if accelerates(config, pod, path, server) {
        flags |= SOCKET_ACCELERATE;
    }
    if path == Path::Tunnel as u32 {
        let v4 = backend.address.is_v4();
        let node = if v4 { Address::from_v4(config.node_v4) } else { config.node_v6 };
        if config.outbound_port == 0 || node.is_unspecified() {
            // Rather nothing than plain text.
            let decision = Decision::because(Reason::MissingTable);
            return attempt.refuse(config, &backend, server, path, decision);
        }
        peer.set(&Endpoint { address: node, port: config.outbound_port });
        flags |= SOCKET_SHOWS_PEER;
    } else if backends != 0 {
        peer.set(&backend);
        flags |= SOCKET_SHOWS_PEER;
    }

    let socket = peer.socket();
    if socket.is_null() {
        return DENY;
    }
    let Some(state) = context::state_or_new(socket) else { return DENY };
    state.origin.destination = dialled;
    state.origin.backend = backend;
    state.origin.source = Endpoint { address: source, port: 0 };
    state.origin.pod = id;
    state.server = server;
    state.decision = decision;
    state.generation = config.generation;
    state.flags = flags;
    state.path = path;
    ALLOW
}

/// A pod's attempt to connect.
struct Attempt {
    id: PodId,
    source: Address,
    protocol: u8,
    dialled: Endpoint,
}

impl Attempt {
    /// Refuses what leads nowhere.
    #[inline(always)]
    fn refuse_untouched(&self, config: &Config, reason: Reason) -> i32 {
        let decision = Decision::because(reason);
        self.refuse(config, &self.dialled, 0, Path::Untouched as u32, decision)
    }

    /// `path` is the one that it would have taken.
    #[inline(always)]
    fn refuse(
        &self,
        config: &Config,
        destination: &Endpoint,
        destination_pod: PodId,
        path: u32,
        decision: Decision,
    ) -> i32 {
        tables::count(Counter::Denied);
        let flow = Flow {
            source: &Endpoint { address: self.source, port: 0 },
            destination,
            dialled: &self.dialled,
            source_pod: self.id,
            destination_pod,
            decision,
            generation: config.generation,
            path: path as u8,
            protocol: self.protocol,
            flags: FLOW_EGRESS | FLOW_PROVEN,
        };
        flow::emit(FlowKind::Denied, self.id, &flow, None);
        DENY
    }
}

#[inline(always)]
fn judge(
    config: &Config,
    attempt: &Attempt,
    pod: &Pod,
    backend: &Endpoint,
    entry: &AddressEntry,
    server: PodId,
) -> Decision {
    let port = backend.port as u16;
    let tcp = attempt.protocol == TCP;
    if tcp && connection::has_most(config, attempt.id, false) {
        return Decision::because(Reason::ConnectionLimit);
    }
    if server == attempt.id {
        return Decision::because(Reason::Unrestricted);
    }
    let decision = verdict::egress(pod, entry, attempt.protocol, port);
    if !decision.allows() || server == 0 {
        return decision;
    }
    match verdict::enrolled(server) {
        Some(pod) if pod.ingress_subject != 0 => {
            verdict::ingress(pod, &attempt.source, tcp, attempt.protocol, port)
        }
        _ => decision,
    }
}

/// The cheapest path that serves a TCP connection.
#[inline(always)]
fn path(config: &Config, entry: &AddressEntry, backend: &Endpoint) -> u32 {
    if entry.flags & ADDRESS_MESHED == 0 {
        return Path::Untouched as u32;
    }
    if entry.flags & ADDRESS_LOCAL != 0 && config.flags & CONFIG_SAME_NODE_MTLS == 0 {
        return Path::Direct as u32;
    }
    let plain = match entry.plain {
        0 => false,
        u32::MAX => true,
        table => match KernelTables.ports(&PortKey::new(table, TCP, backend.port as u16)) {
            Some(decision) => !decision.allows(),
            None => false,
        },
    };
    match (plain, entry.flags & ADDRESS_LOCAL != 0) {
        (false, _) => Path::Tunnel as u32,
        (true, true) => Path::Direct as u32,
        (true, false) => Path::Untouched as u32,
    }
}

#[inline(always)]
fn accelerates(config: &Config, pod: &Pod, path: u32, server: PodId) -> bool {
    if config.flags & CONFIG_ACCELERATE == 0 || pod.flags & POD_ACCELERATE == 0 {
        return false;
    }
    if path == Path::Tunnel as u32 {
        return true;
    }
    path == Path::Direct as u32
        && matches!(tables::pod(server), Some(server) if server.flags & POD_ACCELERATE != 0)
}

/// The proxy connects to a pod for a remote client, or to another node.
#[inline(always)]
fn proxy_connect<const V6: bool>(ctx: &SockAddrContext, peer: &Peer<V6>) -> i32 {
    if peer.protocol() != TCP {
        return ALLOW;
    }
    let backend = peer.endpoint();
    let Some(config) = tables::config() else { return DENY };
    let entry = tables::address(&backend.address);
    let server = verdict::local_pod(&entry);
    let socket = peer.socket();
    if socket.is_null() {
        return DENY;
    }
    let Some(state) = context::state(socket) else {
        // A tunnel to another node. A pod of this node is only reached on behalf of someone.
        return if verdict::enrolled(server).is_some() { DENY } else { ALLOW };
    };
    let Some(pod) = verdict::enrolled(server) else {
        return if state.flags & SOCKET_HAS_SOURCE != 0 { DENY } else { ALLOW };
    };
    if state.flags & SOCKET_HAS_SOURCE == 0 {
        return DENY;
    }

    let between = Between {
        source_pod: 0,
        source: &state.origin.source.address,
        destination: &backend,
        destination_pod: server,
        proven: true,
        protocol: TCP,
    };
    let mut decision = verdict::both_ends(&between);
    if decision.allows() && connection::has_most(config, server, true) {
        decision = Decision::because(Reason::ConnectionLimit);
    }
    if !decision.allows() {
        debug!(ctx, "pod {}: the proxy's connect refused, reason {}", server, decision.reason);
        tables::count(Counter::Denied);
        let flow = Flow {
            source: &state.origin.source,
            destination: &backend,
            dialled: &state.origin.destination,
            source_pod: 0,
            destination_pod: server,
            decision,
            generation: config.generation,
            path: Path::Tunnel as u8,
            protocol: TCP,
            flags: FLOW_PROVEN,
        };
        flow::emit(FlowKind::Denied, server, &flow, None);
        return DENY;
    }

    let mut flags = SOCKET_CLIENT | SOCKET_OF_PROXY | SOCKET_HAS_SOURCE | SOCKET_PROVEN;
    if config.flags & CONFIG_ACCELERATE != 0 && pod.flags & POD_ACCELERATE != 0 {
        flags |= SOCKET_ACCELERATE;
    }
    state.origin.backend = backend;
    state.origin.pod = 0;
    state.server = server;
    state.decision = decision;
    state.generation = config.generation;
    state.flags = flags;
    state.path = Path::Tunnel as u32;
    ALLOW
}
