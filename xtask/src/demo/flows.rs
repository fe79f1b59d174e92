//! What the agents saw of the traffic.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::expectation::{Expectation, Seen, Target};
use super::stage::Stage;

/// A flow, as `weft observe -o json` prints it; what is not used here is left out.
#[derive(Clone, Debug, Deserialize)]
struct Flow {
    verdict: String,
    path: String,
    source: Peer,
    destination: Peer,
    #[serde(default)]
    dialled: String,
    #[serde(default)]
    rule: Option<Rule>,
    #[serde(default)]
    direction: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Peer {
    address: String,
    port: u32,
    namespace: String,
    pod: String,
    identity: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Rule {
    kind: String,
    namespace: String,
    name: String,
    field: String,
    file: String,
    line: u32,
}

/// The flows that both nodes remember.
pub struct Flows(Vec<Flow>);

impl Flows {
    /// Asks every node's agent.
    pub fn read(stage: &dyn Stage) -> Result<Self> {
        let mut flows = Vec::new();
        for output in stage.weft_on_all_nodes(&["observe", "--last", "10000", "-o", "json"])? {
            for line in output.lines() {
                let value: serde_json::Value = serde_json::from_str(line)
                    .with_context(|| format!("`weft observe` printed {line:?}"))?;
                // Beside flows there are notes of events that were lost.
                if value.get("verdict").is_some() {
                    flows.push(serde_json::from_value(value)?);
                }
            }
        }
        Ok(Self(flows))
    }

    /// What they say of one connection of the demo.
    pub fn seen(&self, stage: &dyn Stage, expected: &Expectation) -> Result<Seen> {
        let dialled = expected.address(stage)?;
        let family_of = |address: &str| if address.contains(':') { 6 } else { 4 };
        let of_this = |flow: &&Flow| {
            let from = format!("{}/{}", flow.source.namespace, flow.source.pod);
            let to = format!("{}/{}", flow.destination.namespace, flow.destination.pod);
            let reached = match &expected.to {
                // The shop's services are called as the pods behind them.
                Target::Service(name) | Target::Pod(name) => to == *name,
                Target::Host(_) => flow.destination.address == dialled.ip().to_string(),
            };
            let meant = flow.dialled == dialled.to_string()
                || (flow.destination.address == dialled.ip().to_string()
                    && flow.destination.port == u32::from(dialled.port()));
            from == expected.from
                && (reached || meant)
                && family_of(&flow.source.address) == expected.family
        };
        let flows: Vec<&Flow> = self.0.iter().filter(of_this).collect();
        Ok(Seen::of(&flows))
    }
}

impl Seen {
    /// Both sides together: a denial decides; otherwise the side of the destination, whose
    /// layers come last, names the rule.
    fn of(flows: &[&Flow]) -> Self {
        let denied = flows.iter().find(|flow| flow.verdict == "denied");
        let decisive = |flow: &&&Flow| flow.rule.is_some();
        let ruled = match denied {
            Some(flow) => Some(*flow),
            None => flows
                .iter()
                .find(|flow| flow.direction == "ingress" && decisive(flow))
                .or_else(|| flows.iter().find(decisive))
                .copied(),
        };
        let rule = ruled.and_then(|flow| flow.rule.clone()).filter(|rule| !rule.kind.is_empty());
        // The path is what the client's side chose; both sides say the same where both see it.
        let chosen = flows.iter().find(|flow| flow.direction == "egress").or(flows.first());
        let path = chosen.map(|flow| flow.path.clone());
        let mut identities: BTreeMap<&str, usize> = BTreeMap::new();
        for flow in flows.iter().filter(|flow| !flow.source.identity.is_empty()) {
            *identities.entry(&flow.source.identity).or_default() += 1;
        }
        Self {
            answer: None,
            path,
            identity: identities.keys().next().map(|identity| (*identity).to_owned()),
            verdict: flows
                .first()
                .map(|_| if denied.is_some() { "denied" } else { "allowed" }.to_owned()),
            policy: rule
                .as_ref()
                .map(|rule| format!("{} {}/{}", rule.kind, rule.namespace, rule.name)),
            place: rule.map(|rule| match rule.file.rsplit('/').next() {
                Some(file) if !file.is_empty() => format!("{file}:{} {}", rule.line, rule.field),
                // From an API server, which has objects and no files.
                _ => rule.field,
            }),
        }
    }
}
