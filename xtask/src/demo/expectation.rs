//! What the demo expects of the shop's traffic, and what it has seen.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use weft_tests::PodAddresses;

use super::stage::Stage;

/// What the bookshop's traffic should show: no manifest, so it is not among them.
pub const PLAN: &str = "examples/bookshop-expectations.yaml";

/// The contents of [`PLAN`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The nodes of the cluster.
    pub nodes: Vec<String>,
    /// Hosts beyond the cluster, with the port that each serves.
    pub hosts: BTreeMap<String, u16>,
    /// What is tried, in this order.
    pub expectations: Vec<Expectation>,
}

/// One connection, and what is expected of it.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The pod that connects, `namespace/name`.
    pub from: String,
    /// What it connects to.
    pub to: Target,
    /// At which port.
    pub port: u16,
    /// Over which family, 4 or 6.
    #[serde(default = "four")]
    pub family: u8,
    /// The path; none where no pod of the mesh is involved, and nothing is to be seen.
    #[serde(default)]
    pub path: Option<String>,
    /// Whether the identity of the source is proven.
    #[serde(default)]
    pub identity: bool,
    /// `allowed` or `denied`.
    pub verdict: String,
    /// The object that is responsible.
    #[serde(default)]
    pub policy: Option<String>,
}

fn four() -> u8 {
    4
}

/// What a pod connects to.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub enum Target {
    /// A service's address.
    Service(String),
    /// A pod's address.
    Pod(String),
    /// A host outside of the cluster.
    Host(String),
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(' ') {
            Some(("service", name)) => Ok(Self::Service(name.into())),
            Some(("pod", name)) => Ok(Self::Pod(name.into())),
            Some(("host", name)) => Ok(Self::Host(name.into())),
            _ => Err(format!("{text:?} is none of `service A/B`, `pod A/B`, `host NAME`")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "service {name}"),
            Self::Pod(name) => write!(f, "pod {name}"),
            Self::Host(name) => write!(f, "host {name}"),
        }
    }
}

impl Plan {
    /// Reads it.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
    }
}

impl Expectation {
    /// The address that is dialled.
    pub fn address(&self, stage: &dyn Stage) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.of_family(stage.addresses(&self.to)?)?, self.port))
    }

    fn of_family(&self, addresses: PodAddresses) -> Result<IpAddr> {
        match self.family {
            4 => Ok(addresses.ipv4.into()),
            6 => Ok(addresses.ipv6.into()),
            other => bail!("family {other} of {} is neither 4 nor 6", self.to),
        }
    }
}

/// What was seen of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the client got its answer, and what it says if it did not.
    pub answer: Option<Result<(), String>>,
    /// What the flows say.
    pub path: Option<String>,
    /// What the flows say.
    pub identity: Option<String>,
    /// What the flows say.
    pub verdict: Option<String>,
    /// Kind, namespace and name of the responsible object.
    pub policy: Option<String>,
    /// Field and place of what is responsible.
    pub place: Option<String>,
}

impl Seen {
    /// What does not agree with what is expected, in words; empty if all does.
    pub fn differences(&self, expected: &Expectation) -> Vec<String> {
        let mut differences = Vec::new();
        let answered = match &self.answer {
            Some(Ok(())) => "allowed",
            Some(Err(_)) => "denied",
            None => "not tried",
        };
        if answered != expected.verdict {
            let why = match &self.answer {
                Some(Err(error)) => format!(" ({error})"),
                _ => String::new(),
            };
            differences.push(format!("the client saw {answered}{why}"));
        }
        let mut compare = |what: &str, expected: Option<&str>, seen: Option<&str>| {
            if expected != seen {
                let none = "none";
                differences.push(format!(
                    "{what}: expected {}, seen {}",
                    expected.unwrap_or(none),
                    seen.unwrap_or(none)
                ));
            }
        };
        compare("path", expected.path.as_deref(), self.path.as_deref());
        compare("policy", expected.policy.as_deref(), self.policy.as_deref());
        if expected.path.is_some() {
            compare("verdict of the flow", Some(&expected.verdict), self.verdict.as_deref());
            let proven = |proven| if proven { Some("proven") } else { Some("not proven") };
            compare("identity", proven(expected.identity), proven(self.identity.is_some()));
        }
        differences
    }
}
