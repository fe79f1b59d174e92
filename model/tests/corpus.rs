//! Reads the manifests that users wrote in the wild.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use weft_model::dialect::{Document, Severity, read_yaml};
use weft_model::mesh::{
    Action, Dialect, Mesh, MtlsMode, Needs, Operator, Ports, Resource, Scope, Settings,
};

/// The corpus, if it is there.
fn corpus() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !folder.is_dir() {
        println!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// The documents of every manifest, by its path in the corpus.
fn documents(folder: &Path) -> BTreeMap<String, Vec<Document>> {
    let mut manifests = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        for file in fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
            let key = format!("{}/{}", name(&folder), name(&path));
            let text = fs::read_to_string(&path).unwrap();
            let documents = read_yaml(&Settings::default(), &key, &text);
            manifests.insert(key, documents);
        }
    }
    manifests
}

#[test]
fn every_document_yields_resources_or_findings() {
    let Some(folder) = corpus() else { return };
    let manifests = documents(&folder);
    let mut summary: BTreeMap<String, [usize; 5]> = BTreeMap::new();
    for (file, documents) in &manifests {
        assert_eq!(documents.len(), 1, "{file}");
        for document in documents {
            assert!(
                !document.resources.is_empty() || !document.findings.is_empty(),
                "{file} says nothing"
            );
            assert!(document.resources.is_empty() || document.is_in_force(), "{file}");
            for finding in &document.findings {
                let location = finding.location.as_ref().expect("a finding without a place");
                assert_eq!(&*location.file, file);
                let lines = fs::read_to_string(folder.join(file)).unwrap().lines().count();
                assert!((1..=lines).contains(&(location.line as usize)), "{finding}");
            }
            let kind = document.object.as_ref().map_or("(no object)", |object| &*object.kind);
            let counts = summary.entry(kind.to_owned()).or_default();
            counts[0] += 1;
            counts[1] += usize::from(!document.resources.is_empty());
            counts[document.severity().map_or(4, |severity| match severity {
                Severity::Note => 4,
                Severity::Warning => 3,
                Severity::Error => 2,
            })] += 1;
        }
    }
    let width = summary.keys().map(String::len).max().unwrap_or_default();
    println!("{:width$}  documents  in force  errors  warnings  fine", "kind");
    for (kind, [documents, read, errors, warnings, fine]) in &summary {
        println!("{kind:width$}  {documents:9}  {read:8}  {errors:6}  {warnings:8}  {fine:4}");
    }
    for finding in manifests.values().flatten().flat_map(|document| &document.findings) {
        println!("{:7} {finding}", finding.severity);
    }
    let total: usize = summary.values().map(|counts| counts[0]).sum();
    assert!(total >= 87, "only {total} documents in the corpus");
}

/// The resources of the one manifest whose path ends so.
fn resources(folder: &Path, file: &str) -> Vec<Resource> {
    let manifests = documents(folder);
    let (_, documents) = manifests.iter().find(|(key, _)| key.ends_with(file)).expect(file);
    documents.iter().flat_map(|document| document.resources.clone()).collect()
}

#[test]
fn authorization_policies_say_what_was_written() {
    let Some(folder) = corpus() else { return };
    let read = |file| match resources(&folder, file).as_slice() {
        [Resource::Authorization(policy)] => (**policy).clone(),
        other => panic!("{file}: {other:?}"),
    };

    for file in [
        "001_05cf46ef9d8c1a61/10-AuthorizationPolicy-deny-all.yaml",
        "003_027e55f89bd56a96/10-AuthorizationPolicy-deny-all.yaml",
        "004_99bac0b319733804/09-AuthorizationPolicy-deny-all.yaml",
    ] {
        let policy = read(file);
        assert_eq!(policy.action, Action::Allow, "{file}");
        assert!(matches!(policy.scope, Scope::Namespace(_)), "{file}");
        assert!(policy.rules.is_empty(), "{file}");
    }

    let policy = read("11-AuthorizationPolicy-allow-frontend-to-backend.yaml");
    assert!(matches!(&policy.scope, Scope::Workload(namespace, selector)
        if &**namespace == "default" && selector.requirements.len() == 1));
    let [identity, http] = &policy.rules[..] else { panic!("{policy:?}") };
    assert_eq!(identity.from[0].principals.len(), 1);
    assert!(!identity.from[0].needs_http && identity.to.is_empty());
    assert_eq!(identity.needs, Needs::L4);
    assert!(http.from.is_empty() && http.to[0].needs_http);
    assert_eq!(http.origin.location.as_ref().map(|location| location.line), Some(15));

    let policy = read("13-AuthorizationPolicy-require-jwt.yaml");
    let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
    assert!(rule.from[0].needs_http && rule.to[0].needs_http);
    assert_eq!(rule.needs, Needs::Http);
    assert!(rule.when.is_empty());
}

#[test]
fn peer_authentications_say_what_was_written() {
    let Some(folder) = corpus() else { return };
    let read = |file| match resources(&folder, file).as_slice() {
        [Resource::PeerAuthentication(policy)] => (**policy).clone(),
        other => panic!("{file}: {other:?}"),
    };
    let policy = read("000_d376c5f824b118c9/06-PeerAuthentication-default.yaml");
    assert_eq!((policy.scope, policy.mode), (Scope::Mesh, Some(MtlsMode::Strict)));

    let policy = read("09-PeerAuthentication-productpage.yaml");
    assert!(matches!(policy.scope, Scope::Workload(..)));
    assert_eq!(policy.mode, Some(MtlsMode::Strict));
    let (mode, origin) = &policy.ports[&9080];
    assert_eq!(*mode, Some(MtlsMode::Disable));
    assert_eq!(&*origin.field, "spec.portLevelMtls.9080");

    let policy = read("07-PeerAuthentication-allow-plaintext.yaml");
    assert_eq!(policy.scope, Scope::Namespace("legacy".into()));
    assert_eq!(policy.mode, Some(MtlsMode::Permissive));
}

#[test]
fn cilium_http_rules_are_kept_and_need_http() {
    let Some(folder) = corpus() else { return };
    let resources = resources(&folder, "16-CiliumNetworkPolicy-api-l7-policy.yaml");
    let [Resource::Policy(policy)] = &resources[..] else { panic!("{resources:?}") };
    assert_eq!(policy.dialect, Dialect::Cilium);
    assert!(policy.isolates_ingress && !policy.isolates_egress);
    assert_eq!(
        policy.subject.pod.requirements[0].operator,
        Operator::In(vec!["api-service".into()])
    );
    let [rule] = &policy.rules[..] else { panic!("{policy:?}") };
    assert_eq!(rule.needs, Needs::Http);
    assert_eq!(rule.peers.as_ref().map(Vec::len), Some(1));
    assert_eq!(rule.ports.as_ref().unwrap()[0].ports, Ports::Range(8080, 8080));
}

#[test]
fn policies_of_other_meshes_are_said_not_to_be_enforced() {
    let Some(folder) = corpus() else { return };
    let manifests = documents(&folder);
    for file in [
        "08-RequestAuthentication-api-service-authn.yaml",
        "22-Server-api-server.yaml",
        "23-ServerAuthorization-api-server-policy.yaml",
        "25-ServiceIntentions-web-to-api.yaml",
    ] {
        let (_, documents) = manifests.iter().find(|(key, _)| key.ends_with(file)).expect(file);
        let finding = &documents[0].findings[0];
        assert_eq!(finding.severity, Severity::Warning, "{finding}");
        assert!(finding.reason.contains("not enforced"), "{finding}");
    }
}

#[test]
fn the_whole_corpus_makes_one_mesh() {
    let Some(folder) = corpus() else { return };
    let mut mesh = Mesh::default();
    for document in documents(&folder).values().flatten() {
        mesh.insert_document(document);
    }
    assert_eq!(mesh.namespaces.len(), 2);
    assert!(mesh.authorization.len() >= 6, "{:?}", mesh.authorization.keys());
    assert!(mesh.peer_authentication.len() >= 6, "{:?}", mesh.peer_authentication.keys());
    assert_eq!(mesh.policies.len(), 1);
}

#[test]
fn the_examples_are_without_fault() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookshop");
    let mut documents = Vec::new();
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".yaml") {
            let text = fs::read_to_string(&path).unwrap();
            documents.extend(read_yaml(&Settings::default(), &name, &text));
        }
    }
    assert!(documents.len() > 20, "only {} documents", documents.len());
    for finding in documents.iter().flat_map(|document| &document.findings) {
        assert_eq!(finding.severity, Severity::Note, "{finding}");
    }
}
