use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use weft_model::dialect::{Finding, Severity};

use super::EXIT_FOUND_WRONG;
use super::agent::MeshArgs;
use super::output::{Paint, TableOrJson, print};
use crate::conditions::cluster;
use crate::source::Tree;

#[derive(Debug, Args)]
pub(super) struct AnalyzeArgs {
    /// Files, or directories with *.yaml, *.yml and *.json at any depth [default: what the API
    /// server has]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Kubeconfig of the API server [default: as kubectl]
    #[arg(long, value_name = "FILE", conflicts_with = "paths")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
}

pub(super) fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let report = if args.paths.is_empty() {
        let read = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("runtime")?
            .block_on(cluster::read(args.kubeconfig.as_deref(), args.mesh.settings()))?;
        Report::of(None, read.objects, &read.findings)
    } else {
        let mut tree = Tree::new(args.paths.clone(), args.mesh.settings());
        tree.scan()?;
        Report::new(&tree)
    };
    match args.output {
        TableOrJson::Table => print(report.text(Paint::stdout()))?,
        TableOrJson::Json => print(serde_json::to_string(&report)?)?,
    }
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND_WRONG) })
}

/// What is to be said about manifests.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// None where it is a cluster that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<usize>,
    documents: usize,
    errors: usize,
    warnings: usize,
    findings: Vec<FindingJson>,
    #[serde(skip)]
    lines: Vec<(Severity, bool, String)>,
}

#[derive(Debug, Serialize)]
struct FindingJson {
    severity: String,
    file: Option<String>,
    line: Option<u32>,
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    field: String,
    reason: String,
}

impl Report {
    pub(super) fn new(tree: &Tree) -> Self {
        let (_, findings) = tree.mesh_and_findings();
        let manifests = tree.manifests();
        Self::of(Some(manifests.paths().count()), manifests.documents(), &findings)
    }

    fn of(files: Option<usize>, documents: usize, findings: &[Finding]) -> Self {
        let count =
            |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        let line = |finding: &Finding| {
            let has_place = finding.location.is_some();
            (finding.severity, has_place, finding.to_string())
        };
        Self {
            files,
            documents,
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            findings: findings.iter().map(FindingJson::from).collect(),
            lines: findings.iter().map(line).collect(),
        }
    }

    /// A line each: `file:line: field: reason`, or `severity  object: field: reason`.
    pub(super) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        for (severity, has_place, line) in &self.lines {
            let padded = if *has_place { severity.to_string() } else { format!("{severity:7}") };
            let severity = match severity {
                Severity::Error => paint.bad(padded),
                Severity::Warning => paint.doubtful(padded),
                Severity::Note => paint.dim(padded),
            };
            let _ = match has_place {
                true => writeln!(text, "{line} [{severity}]"),
                false => writeln!(text, "{severity}  {line}"),
            };
        }
        let read = match self.files {
            Some(files) => {
                format!("{} in {}", count(self.documents, "document"), count(files, "file"))
            }
            None => count(self.documents, "object"),
        };
        let (errors, warnings) = (count(self.errors, "error"), count(self.warnings, "warning"));
        let _ = write!(text, "{read}: {errors}, {warnings}");
        text
    }
}

impl From<&Finding> for FindingJson {
    fn from(finding: &Finding) -> Self {
        let object = finding.object.as_ref();
        Self {
            severity: finding.severity.to_string(),
            file: finding.location.as_ref().map(|location| location.file.to_string()),
            line: finding.location.as_ref().map(|location| location.line),
            kind: object.map(|object| object.kind.to_string()),
            namespace: object
                .map(|object| object.name.namespace.to_string())
                .filter(|namespace| !namespace.is_empty()),
            name: object.map(|object| object.name.name.to_string()),
            field: finding.field.to_string(),
            reason: finding.reason.clone(),
        }
    }
}

fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
