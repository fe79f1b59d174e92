use std::process::ExitCode;

use serde::Serialize;
use serde_json::Value;

use crate::cli::EXIT_FOUND_WRONG;
use crate::cli::cluster::{ClusterArgs, is_ready, name_of, node_of};
use crate::cli::output::{Paint, TableOrJson, lines, print, table};

/// A node's agent.
#[derive(Debug, Serialize)]
pub(super) struct NodeStatus {
    pub node: String,
    pub pod: String,
    /// As its readiness probe says.
    pub ready: bool,
    /// `weft status -o json` of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Every agent's status, in a line each.
pub(super) async fn run(args: &ClusterArgs, output: TableOrJson) -> anyhow::Result<ExitCode> {
    let cluster = args.connect().await?;
    let answers = cluster.ask_agents(&["weft", "status", "-o", "json"]).await?;
    if answers.is_empty() {
        anyhow::bail!(
            "there is no agent in namespace {} of {}: `weft install` brings them, and -n names \
             another namespace",
            cluster.namespace,
            cluster.name
        );
    }
    let nodes: Vec<NodeStatus> = answers
        .into_iter()
        .map(|(pod, answer)| {
            let (status, error) = match answer.and_then(|printed| printed.json()) {
                Ok(status) => (Some(status), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            NodeStatus {
                node: node_of(&pod).to_owned(),
                pod: name_of(&pod).to_owned(),
                ready: is_ready(&pod),
                status,
                error,
            }
        })
        .collect();
    match output {
        TableOrJson::Json => print(serde_json::to_string(&nodes)?)?,
        TableOrJson::Table => print(text(&nodes, Paint::stdout()))?,
    }
    let well = nodes.iter().all(|node| node.ready && problems(node).is_empty());
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND_WRONG) })
}

/// What is not in force on a node, or why that is not known.
fn problems(node: &NodeStatus) -> Vec<String> {
    let listed = node.status.as_ref().and_then(|status| status.get("problems")?.as_array());
    let listed = listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    listed.chain(node.error.iter().map(|error| format!("does not answer: {error}"))).collect()
}

pub(super) fn text(nodes: &[NodeStatus], paint: Paint) -> String {
    let mut rows =
        table(&["NODE", "READY", "VERSION", "GENERATION", "PODS", "IN MESH", "PROXY", "PROBLEMS"]);
    for node in nodes {
        let field = |name: &str| match node.status.as_ref().and_then(|status| status.get(name)) {
            None => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(yes)) => if *yes { "connected" } else { "missing" }.to_owned(),
            Some(other) => other.to_string(),
        };
        rows.add_row([
            node.node.clone(),
            if node.ready { "yes" } else { "no" }.to_owned(),
            field("version"),
            field("generation"),
            field("pods"),
            field("enrolled"),
            field("proxy_connected"),
            problems(node).len().to_string(),
        ]);
    }
    let mut text = lines(&mut rows);
    for node in nodes {
        for problem in problems(node) {
            text.push_str(&format!("\n{} {problem}", paint.bad(format_args!("{}:", node.node))));
        }
    }
    text
}
