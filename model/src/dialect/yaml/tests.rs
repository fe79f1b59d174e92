use serde_json::json;

use super::*;

fn only(text: &str) -> YamlDocument {
    let mut documents = read(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0)
}

#[test]
fn a_syntax_error_costs_only_its_document() {
    let text = "a: 1\n---\nb: [1\nc: 2\n---\nd: 3\n...\n# end\n---\n%YAML 1.2\n---\n";
    let documents = read(text);
    let values: Vec<_> = documents.iter().map(|document| &document.value).collect();
    assert_eq!(values.first(), Some(&&json!({"a": 1})));
    assert_eq!(values.get(2), Some(&&json!({"d": 3})));
    assert_eq!(documents.len(), 3, "{documents:?}");
    let problem = &documents[1].problems[0];
    assert!((3..=5).contains(&problem.line), "{problem:?}");
    assert!(problem.reason.starts_with("YAML: "), "{problem:?}");
}

#[test]
fn every_field_has_its_line() {
    let document = only("# one\nspec:\n  list:\n  - a: 1\n    b:\n      c: x\n  - {d: 2}\n");
    let path = |keys: &[&str]| Path::ROOT.fields(keys);
    let list = path(&["spec", "list"]);
    for (path, line) in [
        (path(&["spec"]), 2),
        (list.clone(), 3),
        (list.index(0), 4),
        (list.index(0).field("b"), 5),
        (list.index(0).field("b").field("c"), 6),
        (list.index(0).field("b").field("missing"), 5),
        (list.index(1).field("d"), 7),
        (list.index(7), 3),
    ] {
        assert_eq!(document.lines.line(&path), line, "{path}");
    }
}

#[test]
fn scalars_mean_what_they_mean_to_kubernetes() {
    for (text, value) in [
        ("yes", json!(true)),
        ("off", json!(false)),
        ("'yes'", json!("yes")),
        ("", json!(null)),
        ("~", json!(null)),
        ("0755", json!(493)),
        ("0x10", json!(16)),
        ("-5", json!(-5)),
        ("--5", json!("--5")),
        ("1_000", json!(1000)),
        ("1.5", json!(1.5)),
        ("1e3", json!(1000.0)),
        ("10.0.0.1", json!("10.0.0.1")),
        ("2026-11-21", json!("2026-11-21")),
        ("!!str 5", json!("5")),
        ("!!int '5'", json!(5)),
        ("18446744073709551616", json!(18446744073709551616.0)),
        ("é", json!("é")),
    ] {
        assert_eq!(only(&format!("a: {text}\n")).value, json!({ "a": value }), "{text}");
    }
}

#[test]
fn a_key_that_is_there_twice_is_an_error_with_both_lines() {
    let document = only("spec:\n  a: 1\n  b: 2\n  a: 3\n");
    assert_eq!(
        document.problems,
        [Problem {
            line: 4,
            path: Path::ROOT.fields(&["spec", "a"]),
            reason: "is there twice, first on line 2; remove one".to_owned(),
            cut: false,
        }]
    );
}

#[test]
fn keys_become_text() {
    assert_eq!(only("9080: a\ntrue: b\n").value, json!({"9080": "a", "true": "b"}));
    assert_eq!(only("? [a]\n: b\n").problems[0].reason, "a key must be text; put it in quotes");
}

#[test]
fn aliases_and_merge_keys() {
    let document = only("p: &p {a: 1, b: 2}\nq:\n  <<: *p\n  b: 3\nr: *p\n");
    assert_eq!(
        document.value,
        json!({"p": {"a": 1, "b": 2}, "q": {"a": 1, "b": 3}, "r": {"a": 1, "b": 2}})
    );
    assert_eq!(document.lines.line(&Path::ROOT.fields(&["q", "a"])), 1);
}

#[test]
fn what_aliases_stand_for_is_bounded() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    let document = only(&text);
    assert!(document.problems[0].reason.contains("aliases"), "{:?}", document.problems);
}

#[test]
fn depth_is_bounded() {
    let document = only(&"[".repeat(100_000));
    assert!(!document.problems.is_empty());
}

#[test]
fn what_was_complete_before_a_syntax_error_is_kept() {
    let document = only("kind: X\nmetadata:\n  name: m\nspec:\n  a: {b: 1}\n  c: [1, 2\n  d: 3\n");
    assert_eq!(document.value["metadata"], json!({"name": "m"}));
    assert_eq!(document.value["spec"]["a"], json!({"b": 1}));
    assert!(Path::ROOT.fields(&["spec", "c"]).contains(&document.problems[0].path));
}
