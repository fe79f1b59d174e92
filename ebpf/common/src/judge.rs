/// Key of the map `POLICY` (hash): who is judged, and which peer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PolicyKey {
    /// The subject: all pods on which, in one direction, the same policies act.
    pub subject: u32,
    /// The class of the peer, shifted left by one, and in the lowest bit whether its identity is
    /// proven. Class 0 stands for every class that has no entry of its own.
    pub peer: u32,
}

impl PolicyKey {
    /// `class` and whether its identity is proven, as one number.
    #[inline(always)]
    pub const fn new(subject: u32, class: u32, proven: bool) -> Self {
        Self { subject, peer: class << 1 | proven as u32 }
    }
}

/// The class that stands for every class without an entry of its own.
pub const ANY_CLASS: u32 = 0;

/// Value of the map `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PolicyEntry {
    /// The table of `PORTS` that decides; 0: `decision` holds for every protocol and port.
    pub ports: u32,
    /// The decision where `ports` is 0.
    pub decision: Decision,
}

/// Key of the map `PORTS` (LPM trie; the data below follows a 32-bit prefix length). The table
/// is always matched whole (32 bits), then the protocol (8 bits) and the port (16 bits), so that
/// a table may hold entries for everything, for a protocol, or for an aligned range of ports.
/// A table is never changed once it is referred to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortKey {
    /// The table.
    pub table: u32,
    /// IP protocol number (IANA).
    pub protocol: u8,
    /// Port in network byte order, as bytes; ICMP has its type and 0.
    pub port: [u8; 2],
    /// Always 0, never matched.
    pub unused: u8,
}

impl PortKey {
    /// Bits of a key that names table, protocol and port.
    pub const BITS: u32 = 56;

    /// The key of one port (host byte order).
    #[inline(always)]
    pub const fn new(table: u32, protocol: u8, port: u16) -> Self {
        Self { table, protocol, port: port.to_be_bytes(), unused: 0 }
    }
}

/// A verdict and what is responsible for it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Decision {
    /// Id of the rule (the agent resolves it to object, file and line); 0: none.
    pub rule: u32,
    /// A [`Reason`].
    pub reason: u32,
}

/// Why traffic is allowed or denied. Values below [`Reason::FIRST_DENIAL`] allow.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// No policy restricts it.
    Unrestricted = 0,
    /// The rule allows it.
    Rule = 1,
    /// It comes from the pod's own node, which Kubernetes lets reach its pods.
    OwnNode = 2,
    /// It is a reply, or belongs to a connection that is allowed.
    Related = 3,
    /// It was there before the pod was enrolled.
    Established = 4,
    /// The rule denies it.
    RuleDenies = 64,
    /// The rule's policy isolates the pod, and no rule allows it.
    NoRule = 65,
    /// Mutual TLS is required (PeerAuthentication STRICT), and the peer's identity is not proven.
    NotProven = 66,
    /// The rule would have to inspect HTTP, which is not done here.
    NeedsHttp = 67,
    /// The agent does not know the pod yet, or has not applied a policy.
    UnknownPod = 68,
    /// The source address is not the pod's.
    ForgedSource = 69,
    /// The pod has as many connections as it may.
    ConnectionLimit = 70,
    /// The service has no endpoint.
    NoEndpoint = 71,
    /// The port belongs to the node's proxy.
    ProxyPort = 72,
    /// A table has no entry where it must have one.
    MissingTable = 73,
    /// A map is full.
    MapFull = 74,
    /// The rule asks for something that Weft does not support.
    Unsupported = 75,
}

impl Reason {
    /// The first value that denies.
    pub const FIRST_DENIAL: u32 = 64;
}

impl Decision {
    /// A decision without a rule.
    #[inline(always)]
    pub const fn because(reason: Reason) -> Self {
        Self { rule: 0, reason: reason as u32 }
    }

    /// A decision of a rule.
    #[inline(always)]
    pub const fn of(rule: u32, reason: Reason) -> Self {
        Self { rule, reason: reason as u32 }
    }

    /// Whether it allows.
    #[inline(always)]
    pub const fn allows(&self) -> bool {
        self.reason < Reason::FIRST_DENIAL
    }
}

/// Where policy is looked up: kernel maps, or the same tables in memory.
pub trait Tables {
    /// Looks up `POLICY`.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyEntry>;
    /// Looks up `PORTS`: the longest prefix of table, protocol and port.
    fn ports(&self, key: &PortKey) -> Option<Decision>;
}

/// Decides whether `subject` may talk with a peer of `class` over `protocol` and the
/// destination's `port` (host byte order). Subject 0 is unrestricted. A missing table denies.
#[inline(always)]
pub fn judge<T: Tables>(
    tables: &T,
    subject: u32,
    class: u32,
    proven: bool,
    protocol: u8,
    port: u16,
) -> Decision {
    if subject == 0 {
        return Decision::because(Reason::Unrestricted);
    }
    let own = tables.policy(&PolicyKey::new(subject, class, proven));
    let entry = match own {
        Some(entry) => Some(entry),
        None => tables.policy(&PolicyKey::new(subject, ANY_CLASS, proven)),
    };
    let Some(entry) = entry else {
        return Decision::because(Reason::MissingTable);
    };
    if entry.ports == 0 {
        return entry.decision;
    }
    match tables.ports(&PortKey::new(entry.ports, protocol, port)) {
        Some(decision) => decision,
        None => Decision::because(Reason::MissingTable),
    }
}

crate::pod!(PolicyKey, PolicyEntry, PortKey, Decision);
