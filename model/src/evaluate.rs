//! The reference evaluator: what the mesh says about one connection, written to be read against
//! the specifications of the dialects, slow and plain. The compiled tables must say the same;
//! `tests/random.rs` compares them. Nothing here is shared with the compiler but the mesh's own
//! lookups.

mod authorization;
mod mtls;
mod network;
mod party;
mod path;
mod service;

use std::fmt;
use std::net::IpAddr;

use weft_common::Reason;

use crate::mesh::{Direction, Mesh, Name, Origin, Pod, Protocol};

pub use mtls::{MtlsRequirement, mtls};
pub use path::path;
pub use service::backends;

use party::{Ends, Kind};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A pod. Of its addresses the first is meant whose family the other end has too.
    Pod(Name),
    /// Whatever has this address.
    Address(IpAddr),
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// A connection to be judged, after a service address has been replaced by a backend's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Who opens it.
    pub source: Party,
    /// Who serves it.
    pub destination: Party,
    /// Its protocol.
    pub protocol: Protocol,
    /// The destination's port; for ICMP its type, which no rule reads.
    pub port: u16,
    /// Whether the source's identity is proven to the destination's node.
    pub proven: bool,
}

/// Which layer of policy a step of a verdict is (see "Layers of policy" in the design).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// L3/L4 policies of the source.
    Egress,
    /// L3/L4 policies of the destination.
    Ingress,
    /// PeerAuthentication of the destination.
    Mtls,
    /// AuthorizationPolicy of the destination.
    Authorization,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Mtls => "mtls",
            Self::Authorization => "authorization",
        })
    }
}

/// Why something is allowed or denied, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub reason: Reason,
    /// The rule or policy that is responsible, if one is.
    pub origin: Option<Origin>,
}

impl Outcome {
    /// No policy restricts it.
    pub const UNRESTRICTED: Self = Self { reason: Reason::Unrestricted, origin: None };

    pub(crate) fn because(reason: Reason) -> Self {
        Self { reason, origin: None }
    }

    pub(crate) fn of(reason: Reason, origin: &Origin) -> Self {
        Self { reason, origin: Some(origin.clone()) }
    }

    /// Whether it allows.
    pub fn allows(&self) -> bool {
        (self.reason as u32) < Reason::FIRST_DENIAL
    }
}

/// What one layer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The layer.
    pub layer: Layer,
    /// What it says.
    pub outcome: Outcome,
}

/// What all layers say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Every layer that speaks of the connection, in order, also after a denial. Empty where a
    /// pod talks to itself, or a pod is not known.
    pub steps: Vec<Step>,
    /// The first denial in that order. Without one, what the destination's layers say if any
    /// policy restricts it, otherwise what the source's does.
    pub outcome: Outcome,
}

impl Verdict {
    /// Whether the connection is allowed.
    pub fn allows(&self) -> bool {
        self.outcome.allows()
    }

    /// What the source's layer says on its own: the outcome of [`Layer::Egress`].
    pub fn egress(&self) -> Outcome {
        self.among(&[Layer::Egress])
    }

    /// What the destination's layers say on their own: the first denial, or the innermost rule
    /// that allows (authorization before L3/L4), or the reason why none was asked.
    pub fn ingress(&self) -> Outcome {
        self.among(&[Layer::Ingress, Layer::Mtls, Layer::Authorization])
    }

    fn among(&self, layers: &[Layer]) -> Outcome {
        let steps = || self.steps.iter().filter(|step| layers.contains(&step.layer));
        if let Some(denial) = steps().find(|step| !step.outcome.allows()) {
            return denial.outcome.clone();
        }
        // STRICT that is met says nothing of who may come: it is no rule that allows.
        let rule = steps()
            .filter(|step| step.layer != Layer::Mtls)
            .rfind(|step| step.outcome.reason == Reason::Rule);
        if let Some(rule) = rule {
            return rule.outcome.clone();
        }
        match steps().find(|step| step.outcome.reason == Reason::OwnNode) {
            Some(exempt) => exempt.outcome.clone(),
            None => Outcome::UNRESTRICTED,
        }
    }
}

/// What the mesh says about a connection.
pub fn verdict(mesh: &Mesh, connection: &Connection) -> Verdict {
    let Some(ends) = Ends::of(mesh, connection) else {
        return Verdict { steps: Vec::new(), outcome: Outcome::because(Reason::UnknownPod) };
    };
    let mut steps = Vec::new();
    if ends.are_one_pod() {
        return Verdict { steps, outcome: Outcome::UNRESTRICTED };
    }
    if let Kind::Pod(source) = &ends.source.kind
        && mesh.is_enrolled(source)
    {
        let outcome =
            network::judge(mesh, source, Direction::Egress, &ends.destination, connection);
        steps.push(Step { layer: Layer::Egress, outcome });
    }
    if let Kind::Pod(destination) = &ends.destination.kind
        && mesh.is_enrolled(destination)
    {
        let outcome =
            network::judge(mesh, destination, Direction::Ingress, &ends.source, connection);
        steps.push(Step { layer: Layer::Ingress, outcome });
        if connection.protocol == Protocol::Tcp {
            let outcome = mtls::judge(mesh, destination, &ends.source, connection);
            steps.push(Step { layer: Layer::Mtls, outcome });
            let outcome = authorization::judge(mesh, destination, &ends, connection);
            steps.push(Step { layer: Layer::Authorization, outcome });
        }
    }
    let mut verdict = Verdict { steps, outcome: Outcome::UNRESTRICTED };
    let destination_decides = ends.destination.pod().is_some_and(|pod| is_restricted(mesh, pod));
    verdict.outcome = if verdict.egress().allows() && destination_decides {
        verdict.ingress()
    } else {
        verdict.egress()
    };
    verdict
}

/// Whether any policy might refuse something that reaches the pod.
fn is_restricted(mesh: &Mesh, pod: &Pod) -> bool {
    mesh.is_enrolled(pod)
        && (network::restricts(mesh, pod, Direction::Ingress)
            || mtls::restricts(mesh, pod)
            || authorization::restricts(mesh, pod))
}
