use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;
use weft_model::dialect::Severity;
use weft_model::mesh::{Action, Name, ObjectRef, Settings};

use super::{Directory, Tree, View, is_manifest};

const DEADLINE: Duration = Duration::from_secs(60);

fn pod(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  uid: uid-{name}\n\
         spec:\n  nodeName: n1\n  containers: []\nstatus:\n  podIPs:\n  - ip: {address}\n"
    )
}

fn deny(name: &str, port: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  \
         namespace: shop\nspec:\n  action: DENY\n  rules:\n  - to:\n    - operation:\n        \
         ports: [\"{port}\"]\n"
    )
}

fn named(name: &str) -> Name {
    Name { namespace: "shop".into(), name: name.into() }
}

fn policy(name: &str) -> ObjectRef {
    ObjectRef { kind: "AuthorizationPolicy".into(), name: named(name) }
}

struct Watched {
    directory: tempfile::TempDir,
    view: watch::Receiver<View>,
}

impl Watched {
    fn new(files: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let view = Directory::new(directory.path(), Settings::default()).watch().unwrap();
        Self { directory, view }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&View) -> bool) -> View {
        let waited = timeout(DEADLINE, self.view.wait_for(holds)).await;
        waited.unwrap_or_else(|_| panic!("not seen: {what}")).unwrap().clone()
    }
}

fn ports(view: &View, name: &str) -> Vec<u16> {
    let policy = &view.mesh.authorization[&policy(name)];
    policy.rules.iter().flat_map(|rule| &rule.to).flat_map(|to| to.ports.clone()).collect()
}

#[tokio::test]
async fn an_edit_is_seen_however_it_is_written() {
    let mut watched = Watched::new(&[("a.yaml", deny("a", "1"))]);
    assert_eq!(ports(&watched.view.borrow().clone(), "a"), [1]);

    let started = Instant::now();
    watched.write("a.yaml", &deny("a", "2"));
    watched.until("a write in place", |view| ports(view, "a") == [2]).await;
    println!("a write in place was seen after {:?}", started.elapsed());

    let started = Instant::now();
    watched.write(".a.yaml.tmp", &deny("a", "3"));
    fs::rename(watched.path().join(".a.yaml.tmp"), watched.path().join("a.yaml")).unwrap();
    watched.until("a rename", |view| ports(view, "a") == [3]).await;
    println!("a rename was seen after {:?}", started.elapsed());

    let started = Instant::now();
    let mut open = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(watched.path().join("a.yaml"))
        .unwrap();
    open.write_all(deny("a", "4").as_bytes()).unwrap();
    watched.until("a write by somebody who keeps it open", |view| ports(view, "a") == [4]).await;
    println!("a write that is not closed was seen after {:?}", started.elapsed());

    fs::create_dir(watched.path().join("below")).unwrap();
    watched.write("below/b.yaml", &deny("b", "5"));
    watched
        .until("a file in a new folder", |view| view.mesh.authorization.contains_key(&policy("b")))
        .await;
    fs::remove_dir_all(watched.path().join("below")).unwrap();
    watched.until("its removal", |view| !view.mesh.authorization.contains_key(&policy("b"))).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_removes_nothing() {
    let mut watched = Watched::new(&[("a.yaml", deny("a", "1"))]);
    watched.view.mark_unchanged();
    // As an editor does that writes in place: empty for a moment, then one half, then the other.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(watched.path().join("a.yaml"))
        .unwrap();
    let text = deny("a", "2") + "---\n" + &deny("b", "3");
    let (first, second) = text.split_at(text.len() / 3);
    file.write_all(first.as_bytes()).unwrap();
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    watched.view.changed().await.unwrap();
    let view = watched.view.borrow().clone();
    assert_eq!(ports(&view, "a"), [2]);
    assert_eq!(ports(&view, "b"), [3]);
    assert_eq!(view.not_in_force().count(), 0);
}

#[tokio::test]
async fn an_invalid_document_keeps_its_last_good_version_and_the_others_are_untouched() {
    let two = deny("a", "1") + "---\n" + &deny("b", "1");
    let mut watched = Watched::new(&[("two.yaml", two), ("pod.yaml", pod("web", "10.0.0.1"))]);

    let half_bad = deny("a", "99999") + "---\n" + &deny("b", "2");
    watched.write("two.yaml", &half_bad);
    let view = watched.until("the good half", |view| ports(view, "b") == [2]).await;
    assert_eq!(ports(&view, "a"), [1], "the last good version stays");
    assert!(view.mesh.pods.contains_key(&named("web")));
    let problems: Vec<String> = view.not_in_force().collect();
    let file = watched.path().join("two.yaml");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].starts_with(&format!(
            "{}:11: spec.rules[0].to[0].operation.ports[0]: 99999",
            file.display()
        )),
        "{problems:?}"
    );

    // Broken as a whole: nobody can tell which objects were meant.
    watched.write("two.yaml", "a: [unclosed\n  b: \"");
    let view = watched
        .until("the broken file", |view| {
            view.not_in_force().any(|problem| !problem.contains("99999"))
                && view.not_in_force().count() > 0
                && view.documents < 3
        })
        .await;
    assert_eq!((ports(&view, "a"), ports(&view, "b")), (vec![1], vec![2]));

    watched.write("two.yaml", &deny("b", "3"));
    let view = watched.until("the mended file", |view| view.not_in_force().count() == 0).await;
    assert_eq!(ports(&view, "b"), [3]);
    assert!(!view.mesh.authorization.contains_key(&policy("a")), "removed from the file");
}

#[tokio::test]
async fn a_document_that_never_was_good_denies_and_opens_nothing() {
    let mut watched = Watched::new(&[]);
    watched.write("a.yaml", &deny("a", "99999"));
    let view = watched.until("the finding", |view| view.not_in_force().count() == 1).await;
    let standing_in = &view.mesh.authorization[&policy("a")];
    assert!(standing_in.rules.iter().all(|rule| rule.to.is_empty()), "{standing_in:?}");
    assert_eq!(standing_in.action, Action::Deny);
}

#[tokio::test]
async fn an_object_in_two_files_is_reported_and_the_first_by_path_is_in_force() {
    let mut watched = Watched::new(&[("a.yaml", deny("same", "1")), ("b.yaml", deny("same", "2"))]);
    let view = watched.view.borrow_and_update().clone();
    assert_eq!(ports(&view, "same"), [1]);
    let problems: Vec<String> = view.not_in_force().collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("b.yaml:1") && problems[0].contains("a.yaml:1"), "{problems:?}");

    fs::remove_file(watched.path().join("a.yaml")).unwrap();
    let view = watched.until("the other one", |view| ports(view, "same") == [2]).await;
    assert_eq!(view.not_in_force().count(), 0);
}

#[tokio::test]
async fn a_directory_that_goes_away_takes_nothing_with_it() {
    let mut watched = Watched::new(&[("a.yaml", deny("a", "1"))]);
    let away = watched.path().with_extension("away");
    fs::rename(watched.path(), &away).unwrap();
    let view = watched.until("the problem", |view| view.not_in_force().count() > 0).await;
    assert_eq!(ports(&view, "a"), [1]);

    fs::rename(&away, watched.path()).unwrap();
    watched.until("its return", |view| view.not_in_force().count() == 0).await;
    watched.write("a.yaml", &deny("a", "2"));
    watched.until("an edit after it", |view| ports(view, "a") == [2]).await;
}

#[test]
fn the_files_of_a_config_map_are_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let version = directory.path().join("..2026_1");
    fs::create_dir(&version).unwrap();
    fs::write(version.join("a.yaml"), deny("a", "1")).unwrap();
    std::os::unix::fs::symlink("..2026_1", directory.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", directory.path().join("a.yaml")).unwrap();
    // A link that leads in a circle.
    std::os::unix::fs::symlink(".", directory.path().join("circle")).unwrap();
    let mut tree = Tree::new(vec![directory.path().to_owned()], Settings::default());
    assert!(tree.scan().unwrap());
    assert_eq!(tree.manifests().documents(), 1);
    assert!(!tree.scan().unwrap(), "nothing has changed");
}

#[test]
fn what_is_no_text_is_reported_with_its_file() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), [0xff, 0xfe, 0]).unwrap();
    let mut tree = Tree::new(vec![directory.path().to_owned()], Settings::default());
    tree.scan().unwrap();
    let findings = tree.manifests().findings();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Error);
    assert!(findings[0].to_string().contains("a.yaml:1: is not UTF-8"), "{}", findings[0]);
}

#[test]
fn hidden_files_and_other_names_are_no_manifests() {
    for (name, is) in [
        ("a.yaml", true),
        ("a.yml", true),
        ("a.json", true),
        (".a.yaml", false),
        ("a.yaml~", false),
        (".a.yaml.swp", false),
        ("README.md", false),
        ("yaml", false),
    ] {
        assert_eq!(is_manifest(Path::new(name)), is, "{name}");
    }
}
