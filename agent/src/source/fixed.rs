//! Settings that a process has for as long as it runs.

use weft_model::dialect::{Finding, Severity};
use weft_model::mesh::{ObjectRef, Settings};

/// Takes back from `said` what only a restart changes; the findings, about `object`, say what that
/// was. `own` is what the process was started with.
pub fn keep_fixed(own: &Settings, said: &mut Settings, object: Option<&ObjectRef>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut refuse = |field: &str, flag: &str, value: &str| {
        findings.push(Finding {
            severity: Severity::Warning,
            object: object.cloned(),
            field: field.into(),
            reason: format!(
                "differs from what the agents and the CA were started with, which stays in force: \
                 restart them with {flag} (in the chart {value})"
            ),
            location: None,
        });
    };
    if said.trust_domain != own.trust_domain {
        said.trust_domain = own.trust_domain.clone();
        refuse("spec.trustDomain", "--trust-domain", "mesh.trustDomain");
    }
    if said.certificate_life != own.certificate_life {
        said.certificate_life = own.certificate_life;
        refuse("spec.certificateLife", "--certificate-life", "mesh.certificateLife");
    }
    findings
}
