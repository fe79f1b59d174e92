use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::client::block_on;
use super::cluster::{ClusterArgs, node_of};
use super::output::{TableOrJson, lines, print, table};

#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Only this command's own
    #[arg(long)]
    client: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// An agent's version, or why it is not known.
type AgentVersion = (String, Result<Value, String>);

pub(super) fn run(args: &VersionArgs) -> anyhow::Result<ExitCode> {
    let (version, layout) = (env!("CARGO_PKG_VERSION"), weft_common::LAYOUT_VERSION);
    let asked = !args.client && args.cluster.is_known();
    let agents = if asked { block_on(agents(&args.cluster)) } else { Ok(Vec::new()) };
    match args.output {
        TableOrJson::Json => {
            let mut printed = json!({ "version": version, "layout": layout });
            if asked && let Some(object) = printed.as_object_mut() {
                object.insert("agents".to_owned(), agents_json(&agents));
            }
            print(printed)?;
        }
        TableOrJson::Table => {
            print(format_args!("weft {version} (map layout {layout})"))?;
            match agents {
                Ok(agents) if agents.is_empty() => {}
                Ok(agents) => print(format_args!("\n{}", text(&agents)))?,
                // The command's own version was the question; a cluster is a guess.
                Err(error) => eprintln!("agents: not known: {error:#}"),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn agents(args: &ClusterArgs) -> anyhow::Result<Vec<AgentVersion>> {
    let cluster = args.connect().await?;
    let answers = cluster.ask_agents(&["weft", "version", "--client", "-o", "json"]).await?;
    Ok(answers
        .into_iter()
        .map(|(pod, answer)| {
            let version =
                answer.and_then(|printed| printed.json()).map_err(|error| format!("{error:#}"));
            (node_of(&pod).to_owned(), version)
        })
        .collect())
}

fn agents_json(agents: &anyhow::Result<Vec<AgentVersion>>) -> Value {
    match agents {
        Ok(agents) => agents
            .iter()
            .map(|(node, version)| match version {
                Ok(version) => json!({ "node": node, "version": version }),
                Err(error) => json!({ "node": node, "error": error }),
            })
            .collect(),
        Err(error) => json!({ "error": format!("{error:#}") }),
    }
}

fn text(agents: &[AgentVersion]) -> String {
    let mut rows = table(&["NODE", "AGENT", "MAP LAYOUT"]);
    for (node, version) in agents {
        match version {
            Ok(version) => rows.add_row([
                node.clone(),
                version["version"].as_str().unwrap_or_default().to_owned(),
                version["layout"].to_string(),
            ]),
            Err(error) => rows.add_row([node.clone(), error.clone(), String::new()]),
        };
    }
    lines(&mut rows)
}
