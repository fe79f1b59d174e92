use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_model::dialect::{Finding, Severity};

use super::EXIT_FOUND_WRONG;
use super::agent::MeshArgs;
use super::output::{Paint, TableOrJson, print};
use crate::source::Tree;

#[derive(Debug, Args)]
pub(super) struct ValidateArgs {
    /// Files, or directories with *.yaml, *.yml and *.json at any depth
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    mesh: MeshArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
}

pub(super) fn run(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let mut tree = Tree::new(args.paths.clone(), args.mesh.settings());
    tree.scan()?;
    let report = Report::new(&tree);
    match args.output {
        TableOrJson::Table => print(report.text(Paint::stdout()))?,
        TableOrJson::Json => print(serde_json::to_string(&report)?)?,
    }
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND_WRONG) })
}

/// What is to be said about manifests.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    files: usize,
    documents: usize,
    errors: usize,
    warnings: usize,
    findings: Vec<FindingJson>,
    #[serde(skip)]
    lines: Vec<(Severity, String)>,
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
        let findings = tree.manifests().findings();
        let count =
            |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            files: tree.manifests().paths().count(),
            documents: tree.manifests().documents(),
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            findings: findings.iter().map(FindingJson::from).collect(),
            lines: findings.iter().map(|finding| (finding.severity, finding.to_string())).collect(),
        }
    }

    /// `file:line: field: reason`, a line each.
    pub(super) fn text(&self, paint: Paint) -> String {
        let mut text = String::new();
        for (severity, line) in &self.lines {
            let severity = match severity {
                Severity::Error => paint.bad("error"),
                Severity::Warning => paint.doubtful("warning"),
                Severity::Note => paint.dim("note"),
            };
            let _ = writeln!(text, "{line} [{severity}]");
        }
        let _ = write!(
            text,
            "{} in {}: {}, {}",
            count(self.documents, "document"),
            count(self.files, "file"),
            count(self.errors, "error"),
            count(self.warnings, "warning"),
        );
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
