use crate::{
    ADDRESS_HOST, Address, AddressEntry, Decision, Endpoint, Pod, PodId, Reason, Tables, judge,
};

/// What a node knows of addresses and of its pods: kernel maps, or the same tables in memory.
pub trait NodeTables: Tables {
    /// Looks up `ADDRESSES`: the longest prefix. None: nothing is known of the address.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// Looks up `PODS`.
    fn pod(&self, id: PodId) -> Option<&Pod>;
}

/// A connection or flow: who, whereto, and how well its source is known.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The source's pod if it is on this node, otherwise 0.
    pub source_pod: PodId,
    /// The source's address.
    pub source: &'a Address,
    /// The destination after load balancing.
    pub destination: &'a Endpoint,
    /// The destination's pod if it is on this node, otherwise 0.
    pub destination_pod: PodId,
    /// Whether the source's identity is proven.
    pub proven: bool,
    /// IP protocol number.
    pub protocol: u8,
}

impl Between<'_> {
    /// Judges both ends, as far as they are pods of the mesh on this node: a denial of the
    /// source's policies, then what the destination's say, then what the source's say.
    #[inline(always)]
    pub fn judge<T: NodeTables>(&self, tables: &T) -> Decision {
        let egress = self.judge_egress(tables);
        if let Some(decision) = egress
            && !decision.allows()
        {
            return decision;
        }
        match (self.judge_ingress(tables), egress) {
            (Some(decision), _) | (None, Some(decision)) => decision,
            (None, None) => Decision::because(Reason::Unrestricted),
        }
    }

    /// What the source's policies say; none where none restricts it, or it is no pod of the mesh
    /// on this node.
    #[inline(always)]
    pub fn judge_egress<T: NodeTables>(&self, tables: &T) -> Option<Decision> {
        let pod = self.end(tables, self.source_pod)?;
        if pod.egress_subject == 0 {
            return None;
        }
        let class = match tables.address(&self.destination.address) {
            Some(entry) => entry.class,
            None => 0,
        };
        let port = self.destination.port as u16;
        Some(judge(tables, pod.egress_subject, class, false, self.protocol, port))
    }

    /// What the destination's policies say; none where none restricts it, or it is no pod of the
    /// mesh on this node.
    #[inline(always)]
    pub fn judge_ingress<T: NodeTables>(&self, tables: &T) -> Option<Decision> {
        let pod = self.end(tables, self.destination_pod)?;
        if pod.ingress_subject == 0 {
            return None;
        }
        let port = self.destination.port as u16;
        Some(judge_source(tables, pod, self.source, self.proven, self.protocol, port))
    }

    /// A pod of the mesh. One that talks with itself is not restricted.
    #[inline(always)]
    fn end<'t, T: NodeTables>(&self, tables: &'t T, id: PodId) -> Option<&'t Pod> {
        if id == 0 || self.source_pod == self.destination_pod {
            return None;
        }
        match tables.pod(id) {
            Some(pod) if pod.is_enrolled() => Some(pod),
            _ => None,
        }
    }
}

/// Decides whether a source may reach a pod. Processes of the pod's own node always may.
#[inline(always)]
pub fn judge_source<T: NodeTables>(
    tables: &T,
    pod: &Pod,
    source: &Address,
    proven: bool,
    protocol: u8,
    port: u16,
) -> Decision {
    if pod.ingress_subject == 0 {
        return Decision::because(Reason::Unrestricted);
    }
    let mut class = 0;
    if let Some(entry) = tables.address(source) {
        if entry.flags & ADDRESS_HOST != 0 {
            return Decision::because(Reason::OwnNode);
        }
        class = entry.class;
    }
    judge(tables, pod.ingress_subject, class, proven, protocol, port)
}
