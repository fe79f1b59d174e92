//! The `weft` command as its users run it: what needs no agent.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Two pods, and a policy that lets nobody reach them.
fn mesh() -> String {
    let pod = |name: &str, number: u8| {
        format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  uid: 3f0c5a55-000{number}-4000-8000-000000000001
  labels:
    weft.dev/mesh: enabled
spec:
  nodeName: n1
  containers: []
status:
  podIPs:
  - ip: 10.0.0.{number}
---
"
        )
    };
    pod("web", 1) + &pod("api", 2) + NOBODY
}

const NOBODY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: nobody
  namespace: shop
spec:
  podSelector: {}
  policyTypes: [Ingress]
";

fn weft(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(words)
        .env_remove("WEFT_LOG")
        .env_remove("WEFT_RUN_DIR")
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn validate_succeeds_on_good_manifests_and_fails_on_bad_ones() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    fs::write(&file, mesh()).unwrap();
    let good = weft(&["validate", text(directory.path())]);
    assert!(good.status.success(), "{}", stderr(&good));
    assert_eq!(stdout(&good), "3 documents in 1 file: 0 errors, 0 warnings\n");

    fs::write(&file, mesh().replace("podSelector: {}", "podSelector: 5")).unwrap();
    let bad = weft(&["validate", text(&file)]);
    assert_eq!(bad.status.code(), Some(1));
    let line = format!("{}:37: spec.podSelector: ", file.display());
    assert!(stdout(&bad).starts_with(&line), "{}", stdout(&bad));
    assert!(!stdout(&bad).contains('\u{1b}'), "no colours but on a terminal");

    let json = weft(&["validate", text(&file), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&report["errors"], &report["findings"][0]["line"]), (&1.into(), &37.into()));

    let missing = weft(&["validate", "/nonexistent/manifests"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("/nonexistent/manifests: No such file"), "{missing:?}");
}

#[test]
fn the_example_is_valid() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookshop");
    let output = weft(&["validate", text(&example)]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(stdout(&output).ends_with(": 0 errors, 0 warnings\n"), "{}", stdout(&output));
}

#[test]
fn explain_answers_from_manifests_without_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    fs::write(&file, mesh()).unwrap();
    let words = ["policy", "explain", "shop/web", "shop/api", "80", "--manifests", text(&file)];
    let answer = weft(&words);
    assert!(answer.status.success(), "{}", stderr(&answer));
    let first = "shop/web -> shop/api 80/tcp: DENIED, no rule allows it\n";
    assert!(stdout(&answer).starts_with(first), "{}", stdout(&answer));
    let rule = format!("rule  NetworkPolicy shop/nobody spec ({}:", file.display());
    assert!(stdout(&answer).contains(&rule), "{}", stdout(&answer));

    let json = weft(&[&words[..], &["-o", "json"]].concat());
    let answer: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&answer["verdict"], &answer["rule"]["name"]), (&"denied".into(), &"nobody".into()));

    let unknown = weft(&["policy", "explain", "nobody", "api", "80", "--manifests", text(&file)]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("there is no pod \"nobody\""), "{unknown:?}");
}

#[test]
fn without_an_agent_the_way_out_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for words in [vec!["status"], vec!["observe"], vec!["policy", "explain", "a", "b", "80"]] {
        let words = [words, vec!["--run-dir", text(directory.path())]].concat();
        let output = weft(&words);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("is `weft agent` running"), "{output:?}");
    }
}

#[test]
fn version_and_completions_are_printed() {
    let version = stdout(&weft(&["version"]));
    assert!(version.starts_with(concat!("weft ", env!("CARGO_PKG_VERSION"))), "{version}");
    let json: serde_json::Value =
        serde_json::from_slice(&weft(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&weft(&["completions", shell])).contains("observe"), "{shell}");
    }
}
