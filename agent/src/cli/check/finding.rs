use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::cli::output::{Paint, lines, table};

/// What a look found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub ok: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The node, where it is about one of a cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Verdict {
    Ok,
    Warning,
    Missing,
}

impl Finding {
    pub(in crate::cli) fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, found.into(), None)
    }

    pub(in crate::cli) fn warning(check: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self::new(check, Verdict::Warning, found.into(), Some(remedy.to_owned()))
    }

    pub(in crate::cli) fn missing(check: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self::new(check, Verdict::Missing, found.into(), Some(remedy.to_owned()))
    }

    fn new(check: &str, ok: Verdict, found: String, remedy: Option<String>) -> Self {
        Self { check: check.to_owned(), ok, found, remedy, node: None }
    }

    pub(in crate::cli) fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }
}

/// For people: a line each, and below it what to do. What is alike on several nodes is said once.
pub(in crate::cli) fn text(findings: &[Finding], paint: Paint) -> String {
    let mut rows: Vec<(Finding, Vec<&str>)> = Vec::new();
    for finding in findings {
        let alike = Finding { node: None, ..finding.clone() };
        let node = finding.node.as_deref();
        match rows.iter_mut().find(|(known, nodes)| *known == alike && !nodes.is_empty()) {
            Some((_, nodes)) if node.is_some() => nodes.extend(node),
            _ => rows.push((alike, node.into_iter().collect())),
        }
    }
    let mut table = table(&["CHECK", "", "FOUND"]);
    for (finding, nodes) in &rows {
        let verdict = match finding.ok {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Missing => "missing",
        };
        let found = match &nodes[..] {
            [] => finding.found.clone(),
            [node] => format!("{node}: {}", finding.found),
            nodes if nodes.len() > 3 => format!("{} nodes: {}", nodes.len(), finding.found),
            nodes => format!("{}: {}", nodes.join(", "), finding.found),
        };
        table.add_row([finding.check.as_str(), verdict, &found.replace('\n', " ")]);
    }
    let mut text = String::new();
    let printed = lines(&mut table);
    let mut printed = printed.lines();
    if let Some(header) = printed.next() {
        let _ = writeln!(text, "{header}");
    }
    for (line, (finding, _)) in printed.zip(&rows) {
        // Colours would spoil the table's arithmetic, so they come last.
        let line = match finding.ok {
            Verdict::Ok => line.replacen(" ok ", &format!(" {} ", paint.good("ok")), 1),
            Verdict::Warning => {
                line.replacen(" warning ", &format!(" {} ", paint.doubtful("warning")), 1)
            }
            Verdict::Missing => {
                line.replacen(" missing ", &format!(" {} ", paint.bad("missing")), 1)
            }
        };
        let _ = writeln!(text, "{line}");
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "  {} {remedy}", paint.dim("->"));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// How many there are of each verdict.
pub(super) fn counts(findings: &[Finding]) -> BTreeMap<Verdict, usize> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        *counts.entry(finding.ok).or_default() += 1;
    }
    counts
}
