use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use weft_model::dialect::Severity;
use weft_proto::v1::{ExplainRequest, ExplainResponse};

use super::agent::MeshArgs;
use super::client::{ClientArgs, answer, block_on};
use super::output::{Paint, TableOrJson, lines, print, rule_text, table};
use crate::explain::explain;
use crate::source::Tree;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The client: namespace/pod, pod, or an address
    from: String,
    /// The server: namespace/pod, pod, service:namespace/name, or an address
    to: String,
    /// The port that is dialled
    port: u16,
    /// The protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp", "icmp", "sctp"])]
    protocol: String,
    /// Ask these manifests, and not the agent
    #[arg(long, value_name = "DIR")]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
}

pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = ExplainRequest {
        from: args.from.clone(),
        to: args.to.clone(),
        port: u32::from(args.port),
        protocol: args.protocol.clone(),
    };
    let response = if args.manifests.is_empty() {
        block_on(async {
            let mut agent = args.client.observer().await?;
            Ok(agent.explain(request.clone()).await.map_err(answer)?.into_inner())
        })?
    } else {
        let mut tree = Tree::new(args.manifests.clone(), args.mesh.settings());
        tree.scan().context("--manifests")?;
        let (mesh, findings) = tree.mesh_and_findings();
        for finding in findings.iter().filter(|finding| finding.severity == Severity::Error) {
            tracing::warn!("not in force: {finding}");
        }
        explain(&mesh, args.mesh.same_node_mtls() || mesh.settings.same_node_mtls, &request)?
    };
    match args.output {
        TableOrJson::Table => print(text(&request, &response, Paint::stdout()))?,
        TableOrJson::Json => print(serde_json::to_string(&response)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// For people.
pub(super) fn text(request: &ExplainRequest, response: &ExplainResponse, paint: Paint) -> String {
    let mut text = format!(
        "{} -> {} {}/{}: {}",
        request.from,
        request.to,
        request.port,
        request.protocol,
        paint.verdict(&response.verdict, response.verdict.to_uppercase()),
    );
    let _ = writeln!(text, ", {}", response.reason);
    if response.verdict == "mixed" {
        text.push_str("(its endpoints differ: this is the first that denies)\n");
    }
    match &response.rule {
        Some(rule) => {
            let _ = writeln!(text, "rule  {}", rule_text(rule));
        }
        None => text.push_str("rule  none\n"),
    }
    let _ = writeln!(text, "path  {}", response.path);
    if !response.steps.is_empty() {
        let mut steps = table(&["LAYER", "OF", "VERDICT", "REASON", "RULE"]);
        for step in &response.steps {
            steps.add_row([
                step.direction.clone(),
                step.subject.clone(),
                step.verdict.clone(),
                step.reason.clone(),
                step.rule.as_ref().map(rule_text).unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        let _ = write!(text, "\n{}", lines(&mut steps));
    }
    text
}
