//! Findings, said by log.

use std::sync::Arc;

use weft_model::dialect::{Finding, Severity};

/// Says each finding once, and when an error is gone.
#[derive(Debug, Default)]
pub(super) struct FindingsLog {
    last: Arc<[Finding]>,
}

impl FindingsLog {
    pub(super) fn update(&mut self, findings: &Arc<[Finding]>) {
        if Arc::ptr_eq(findings, &self.last) {
            return;
        }
        for finding in findings.iter().filter(|finding| !self.last.contains(finding)) {
            match finding.severity {
                Severity::Error => tracing::error!(target: "weft::manifests", "{finding}"),
                Severity::Warning => tracing::warn!(target: "weft::manifests", "{finding}"),
                Severity::Note => tracing::debug!(target: "weft::manifests", "{finding}"),
            }
        }
        let gone =
            |finding: &&Finding| finding.severity == Severity::Error && !findings.contains(finding);
        for finding in self.last.iter().filter(gone) {
            tracing::info!(target: "weft::manifests", "no longer: {finding}");
        }
        self.last = findings.clone();
    }
}
