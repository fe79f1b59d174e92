//! What policies that are shaped as Cilium's have in common.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::schema::{Authentication, CidrRule, PortRule, ServiceRule};
use crate::mesh::{Direction, Effect};

/// A policy's `spec`.
pub(in crate::dialect) struct Shape {
    pub endpoint_selector: Option<LabelSelector>,
    pub node_selector: Option<LabelSelector>,
    pub ingress: Option<Vec<SideFields>>,
    pub ingress_deny: Option<Vec<SideFields>>,
    pub egress: Option<Vec<SideFields>>,
    pub egress_deny: Option<Vec<SideFields>>,
    pub default_deny: DefaultDeny,
}

/// `enableDefaultDeny`.
#[derive(Clone, Default, Deserialize)]
pub(in crate::dialect) struct DefaultDeny {
    pub ingress: Option<bool>,
    pub egress: Option<bool>,
}

/// What rules of both directions have, with the names of the fields that hold it.
pub(in crate::dialect) struct SideFields {
    pub endpoints: (&'static str, Option<Vec<LabelSelector>>),
    pub requires: (&'static str, Option<Vec<LabelSelector>>),
    pub identities: (&'static str, Option<Vec<String>>),
    pub cidr: (&'static str, Option<Vec<String>>),
    pub cidr_set: (&'static str, Option<Vec<CidrRule>>),
    pub entities: (&'static str, Option<Vec<String>>),
    pub services: (&'static str, Option<Vec<ServiceRule>>),
    /// Ways to name peers that Weft does not support.
    pub unsupported: Vec<(&'static str, Option<Value>)>,
    pub ports: Option<Vec<PortRule>>,
    pub icmps: Option<Value>,
    pub authentication: Option<Authentication>,
}

/// A list of rules.
pub(super) struct Section {
    pub name: &'static str,
    pub direction: Direction,
    pub effect: Effect,
    pub sides: Option<Vec<SideFields>>,
}

impl Shape {
    /// The lists of rules, of which each may be absent.
    pub(super) fn sections(self) -> [Section; 4] {
        let section = |name, direction, effect, sides| Section { name, direction, effect, sides };
        [
            section("ingress", Direction::Ingress, Effect::Allow, self.ingress),
            section("ingressDeny", Direction::Ingress, Effect::Deny, self.ingress_deny),
            section("egress", Direction::Egress, Effect::Allow, self.egress),
            section("egressDeny", Direction::Egress, Effect::Deny, self.egress_deny),
        ]
    }

    /// Whether a direction has rules.
    pub(super) fn speaks_of(&self, direction: Direction) -> bool {
        let lists = match direction {
            Direction::Ingress => [&self.ingress, &self.ingress_deny],
            Direction::Egress => [&self.egress, &self.egress_deny],
        };
        lists.into_iter().flatten().any(|list| !list.is_empty())
    }
}
