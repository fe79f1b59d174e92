use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Needs, Origin, Selector};

/// Which pods an Istio policy acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every pod (a policy in the root namespace without selector).
    Mesh,
    /// Pods that the selector matches, in every namespace (a policy in the root namespace).
    Selected(Selector),
    /// Pods of a namespace.
    Namespace(Arc<str>),
    /// Pods of a namespace that the selector matches.
    Workload(Arc<str>, Selector),
    /// The pods behind these services of a namespace (`targetRefs`).
    Services(Arc<str>, Vec<Arc<str>>),
    /// Nothing that Weft carries (a Gateway).
    Nothing,
}

/// security.istio.io/v1 AuthorizationPolicy. It acts on TCP that reaches a pod.
///
/// In this order: a matching `Custom` or `Deny` denies; if no `Allow` policy acts on the pod,
/// allowed; if one matches, allowed; otherwise denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// The policy as a whole.
    pub origin: Origin,
    /// The pods it acts on.
    pub scope: Scope,
    /// What it does with what it matches.
    pub action: Action,
    /// It matches where one of these does; without rules it matches nothing.
    pub rules: Vec<AuthorizationRule>,
}

/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// ALLOW, the default.
    Allow,
    /// DENY.
    Deny,
    /// AUDIT: changes no verdict.
    Audit,
    /// CUSTOM: an external authorizer would have to be asked, so what it matches is denied.
    Custom,
}

/// One of `spec.rules`: some source, some operation and all conditions match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRule {
    /// Where it was said, as `spec.rules[0]`.
    pub origin: Origin,
    /// `from`; empty: every source.
    pub from: Vec<Source>,
    /// `to`; empty: every operation.
    pub to: Vec<Operation>,
    /// `when`; all must hold.
    pub when: Vec<Condition>,
    /// What is asked for beyond L4 by the rule as a whole; what a source or an operation asks
    /// for is said there. An allowing rule does not match by a part that needs more than L4; a
    /// denying rule matches by such a part as if it asked for its L4 fields alone.
    pub needs: Needs,
}

/// `rules.from.source`: all fields that are set match. Values with a `*` at either end, or
/// alone, are prefix, suffix and presence matches (Istio API, "Source").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `principals`, as `cluster.local/ns/default/sa/web`; empty: any.
    pub principals: Vec<StringMatch>,
    /// `notPrincipals`.
    pub not_principals: Vec<StringMatch>,
    /// `namespaces`.
    pub namespaces: Vec<StringMatch>,
    /// `notNamespaces`.
    pub not_namespaces: Vec<StringMatch>,
    /// `serviceAccounts`, as namespace and name.
    pub service_accounts: Vec<(Arc<str>, Arc<str>)>,
    /// `notServiceAccounts`.
    pub not_service_accounts: Vec<(Arc<str>, Arc<str>)>,
    /// `ipBlocks`.
    pub ip_blocks: Vec<IpNet>,
    /// `notIpBlocks`.
    pub not_ip_blocks: Vec<IpNet>,
    /// Whether it needs more than L4 (`requestPrincipals`, `remoteIpBlocks`).
    pub needs_http: bool,
}

/// `rules.to.operation`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// `ports`; empty: any.
    pub ports: Vec<u16>,
    /// `notPorts`.
    pub not_ports: Vec<u16>,
    /// Whether it needs more than L4 (`hosts`, `methods`, `paths`).
    pub needs_http: bool,
}

/// `rules.when`, for the keys that are known at L4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `source.ip`.
    SourceIp {
        /// Any of these, if there are any.
        values: Vec<IpNet>,
        /// None of these.
        not_values: Vec<IpNet>,
    },
    /// `source.namespace`.
    SourceNamespace {
        /// Any of these, if there are any.
        values: Vec<StringMatch>,
        /// None of these.
        not_values: Vec<StringMatch>,
    },
    /// `source.principal`.
    SourcePrincipal {
        /// Any of these, if there are any.
        values: Vec<StringMatch>,
        /// None of these.
        not_values: Vec<StringMatch>,
    },
    /// `destination.ip`.
    DestinationIp {
        /// Any of these, if there are any.
        values: Vec<IpNet>,
        /// None of these.
        not_values: Vec<IpNet>,
    },
    /// `destination.port`.
    DestinationPort {
        /// Any of these, if there are any.
        values: Vec<u16>,
        /// None of these.
        not_values: Vec<u16>,
    },
}

/// How Istio matches a string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StringMatch {
    /// The very string.
    Exact(Arc<str>),
    /// `abc*`
    Prefix(Arc<str>),
    /// `*abc`
    Suffix(Arc<str>),
    /// `*`: there, and not empty.
    Present,
}

/// security.istio.io/v1 PeerAuthentication. The narrowest that acts on a pod decides: workload,
/// then namespace, then mesh; of several of one level the oldest, of those the first by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// The policy as a whole.
    pub origin: Origin,
    /// `metadata.creationTimestamp`, in seconds since the epoch; none in a file.
    pub created: Option<i64>,
    /// The pods it acts on.
    pub scope: Scope,
    /// `spec.mtls.mode`; none (or UNSET): inherited.
    pub mode: Option<MtlsMode>,
    /// `spec.portLevelMtls`, by port of the pod; only where the policy has a selector.
    pub ports: BTreeMap<u16, (Option<MtlsMode>, Origin)>,
}

/// mTLS mode of what reaches a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MtlsMode {
    /// Only peers with a proven identity.
    Strict,
    /// Both.
    Permissive,
    /// No tunnel is used towards the pod; peers come as they are.
    Disable,
}
