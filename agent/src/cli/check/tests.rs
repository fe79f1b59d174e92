use k8s_openapi::api::core::v1::Namespace;
use serde_json::json;

use super::finding::text;
use super::meshes::{Names, conflicts, found};
use super::{Finding, Verdict, after, before, node};
use crate::cli::node_pods::Ended;
use crate::cli::output::Paint;
use crate::kernel::CAPABILITIES;

fn verdicts(findings: &[Finding]) -> Vec<(&str, Verdict)> {
    findings.iter().map(|finding| (finding.check.as_str(), finding.ok)).collect()
}

#[test]
fn kernels_are_judged_by_their_release() {
    for (release, verdict) in [
        ("6.18.2-cloud", Verdict::Ok),
        ("6.6.0", Verdict::Ok),
        ("6.1.0-44-cloud-amd64", Verdict::Warning),
        ("5.15.0", Verdict::Missing),
        ("", Verdict::Warning),
    ] {
        assert_eq!(node::kernel(release).ok, verdict, "{release}");
    }
}

#[test]
fn capabilities_that_only_some_functions_need_are_warned_of() {
    let lacking = |names: &[&str]| {
        let mut lacking = CAPABILITIES.to_vec();
        lacking.retain(|one| names.contains(&one.name));
        node::judge_capabilities(&lacking)
    };
    assert_eq!(lacking(&[]).ok, Verdict::Ok);
    let finding = lacking(&["SYS_ADMIN", "SYS_PTRACE"]);
    assert_eq!(finding.ok, Verdict::Warning);
    assert!(finding.found.starts_with("missing: SYS_ADMIN (entering"), "{}", finding.found);
    assert_eq!(lacking(&["SYS_ADMIN", "BPF"]).ok, Verdict::Missing);
}

#[test]
fn versions_of_kubernetes_are_judged() {
    assert_eq!(before::kubernetes("1", "36", "v1.36.3").ok, Verdict::Ok);
    assert_eq!(before::kubernetes("1", "30+", "v1.30.4-eks").ok, Verdict::Ok);
    assert_eq!(before::kubernetes("1", "29", "v1.29.1").ok, Verdict::Missing);
    assert_eq!(before::kubernetes("", "", "").ok, Verdict::Warning);
}

#[test]
fn a_mesh_is_at_work_by_what_acts_and_not_by_its_crds() {
    let mut names = Names::default();
    assert_eq!(verdicts(&found(&names)), [("other meshes", Verdict::Ok)]);
    names.crds.insert("authorizationpolicies.security.istio.io".into());
    assert_eq!(verdicts(&found(&names)), [("other meshes", Verdict::Ok)]);
    names.daemon_sets.insert("ztunnel".into());
    names.webhooks.insert("linkerd-proxy-injector-webhook-config".into());
    let findings = found(&names);
    assert_eq!(
        verdicts(&findings),
        [("other meshes", Verdict::Warning), ("other meshes", Verdict::Warning)]
    );
    assert!(findings[0].found.contains("DaemonSet ztunnel"), "{findings:?}");
}

#[test]
fn labels_that_ask_other_meshes_are_seen() {
    let namespace = |labels, annotations| -> Namespace {
        serde_json::from_value(json!({
            "metadata": {"name": "shop", "labels": labels, "annotations": annotations}
        }))
        .unwrap()
    };
    assert!(conflicts(&namespace(json!({"istio-injection": "disabled"}), json!({}))).is_empty());
    assert_eq!(
        conflicts(&namespace(
            json!({"istio.io/rev": "canary"}),
            json!({"linkerd.io/inject": "enabled"})
        )),
        ["istio.io/rev=canary", "linkerd.io/inject=enabled"]
    );
}

#[test]
fn an_agents_status_becomes_findings() {
    let well = json!({
        "version": env!("CARGO_PKG_VERSION"), "applied": "2026-01-01T00:00:00Z",
        "proxy_connected": true, "problems": [], "warnings": []
    });
    assert!(after::of_agent(&well).iter().all(|finding| finding.ok == Verdict::Ok));
    let ill = json!({"version": "0.0.1", "applied": null, "problems": ["map POLICY is full"]});
    assert_eq!(
        verdicts(&after::of_agent(&ill)),
        [
            ("version", Verdict::Warning),
            ("policy", Verdict::Missing),
            ("proxy", Verdict::Missing),
            ("in force", Verdict::Missing)
        ]
    );
}

#[test]
fn what_a_nodes_pod_prints_is_read_behind_its_log_lines() {
    let findings = vec![Finding::ok("kernel", "6.18")];
    let printed = format!("WARN something\n{}\n", serde_json::to_string(&findings).unwrap());
    let read = before::read("n1", &Ok(Ended { printed, succeeded: true }));
    assert_eq!(read, [Finding::ok("kernel", "6.18").on("n1")]);
    let read = before::read("n1", &Err("ImagePullBackOff".into()));
    assert_eq!(verdicts(&read), [("node", Verdict::Warning)]);
}

#[test]
fn what_is_alike_on_several_nodes_is_said_once_with_its_remedy() {
    let findings = [
        Finding::ok("helm", "found"),
        Finding::missing("BTF", "not there", "take another kernel").on("n1"),
        Finding::missing("BTF", "not there", "take another kernel").on("n2"),
    ];
    assert_eq!(
        text(&findings, Paint(false)),
        "CHECK           FOUND\n\
         helm   ok       found\n\
         BTF    missing  n1, n2: not there\n  -> take another kernel"
    );
}
