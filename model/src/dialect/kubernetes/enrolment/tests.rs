use super::{OTHERS, OWN};
use crate::dialect::{ANNOTATIONS, read_yaml};
use crate::mesh::{Mesh, Resource, Settings};

/// What a pod or namespace with these labels and annotations says, and what is said about that.
fn enrolled(kind: &str, labels: &str, annotations: &str) -> (Option<bool>, Vec<String>) {
    let text = format!(
        "apiVersion: v1\nkind: {kind}\nmetadata: {{name: one, uid: u, labels: {{{labels}}}, \
         annotations: {{{annotations}}}}}\nspec: {{containers: []}}\n"
    );
    let mut documents = read_yaml(&Settings::default(), "m.yaml", &text);
    let document = documents.pop().unwrap();
    let enrolled = match &document.resources[..] {
        [Resource::Pod(pod)] => pod.enrolled,
        [Resource::Namespace(namespace)] => namespace.enrolled,
        other => panic!("{other:?}"),
    };
    let of_marks = document.findings.iter().filter(|one| one.field.starts_with("metadata."));
    (enrolled, of_marks.map(ToString::to_string).collect())
}

#[test]
fn what_other_meshes_read_is_understood_where_they_read_it() {
    // Key and value; what they say as a label and an annotation of a namespace and of a pod.
    for (mark, namespace, pod) in [
        ("weft.dev/mesh: enabled", [Some(true), None], [Some(true), None]),
        ("weft.dev/mesh: disabled", [Some(false), None], [Some(false), None]),
        ("istio.io/dataplane-mode: ambient", [Some(true), None], [Some(true), None]),
        ("istio.io/dataplane-mode: none", [Some(false), None], [Some(false), None]),
        ("istio-injection: enabled", [Some(true), None], [None, None]),
        ("istio-injection: disabled", [Some(false), None], [None, None]),
        ("sidecar.istio.io/inject: 'true'", [None, None], [Some(true), Some(true)]),
        ("sidecar.istio.io/inject: 'false'", [None, None], [Some(false), Some(false)]),
        ("linkerd.io/inject: enabled", [Some(true), Some(true)], [Some(true), Some(true)]),
        ("linkerd.io/inject: ingress", [Some(true), Some(true)], [Some(true), Some(true)]),
        ("linkerd.io/inject: disabled", [Some(false), Some(false)], [Some(false), Some(false)]),
        ("consul.hashicorp.com/connect-inject: 'true'", [None, None], [Some(true), Some(true)]),
        ("consul.hashicorp.com/connect-inject: f", [None, None], [Some(false), Some(false)]),
        (
            "appmesh.k8s.aws/sidecarInjectorWebhook: enabled",
            [Some(true), Some(true)],
            [Some(true), Some(true)],
        ),
        (
            "appmesh.k8s.aws/sidecarInjectorWebhook: disabled",
            [Some(false), Some(false)],
            [Some(false), Some(false)],
        ),
        ("app: web", [None, None], [None, None]),
    ] {
        for (kind, expected) in [("Namespace", namespace), ("Pod", pod)] {
            let found = [enrolled(kind, mark, ""), enrolled(kind, "", mark)];
            assert_eq!(found, expected.map(|one| (one, Vec::new())), "{kind} with {mark}");
        }
    }
}

#[test]
fn wefts_own_label_goes_first_and_differences_are_told() {
    let linkerd = "linkerd.io/inject: enabled";
    let own = "weft.dev/mesh: disabled, istio.io/dataplane-mode: ambient";
    assert_eq!(enrolled("Pod", own, linkerd), (Some(false), Vec::new()));
    assert_eq!(
        enrolled("Namespace", "istio-injection: disabled", linkerd),
        (
            Some(true),
            vec![
                "m.yaml:3: metadata.labels.istio-injection: says no, and what another mesh reads \
                 says yes, which goes first; set weft.dev/mesh to enabled or disabled"
                    .to_owned()
            ]
        )
    );
    assert_eq!(
        enrolled("Pod", "weft.dev/mesh: maybe, linkerd.io/inject: disabled", ""),
        (
            Some(false),
            vec![
                "m.yaml:3: metadata.labels[weft.dev/mesh]: \"maybe\" is neither enabled nor \
                 disabled; the label is ignored"
                    .to_owned()
            ]
        )
    );
}

#[test]
fn annotations_that_are_read_are_known_to_who_keeps_only_those() {
    let read = OTHERS.iter().chain([&OWN]).filter(|mark| mark.annotations);
    for mark in read {
        assert!(ANNOTATIONS.contains(&mark.key), "{}", mark.key);
    }
}

#[test]
fn a_pod_goes_before_its_namespace() {
    let text = |namespace: &str, pod: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{namespace}}}}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop, uid: u, \
             labels: {{{pod}}}}}\nspec: {{containers: []}}\nstatus: {{podIPs: [{{ip: 10.0.0.1}}]}}\n"
        )
    };
    for (namespace, pod, expected) in [
        ("", "", false),
        ("weft.dev/mesh: enabled", "", true),
        ("weft.dev/mesh: enabled", "weft.dev/mesh: disabled", false),
        ("weft.dev/mesh: enabled", "linkerd.io/inject: disabled", false),
        ("istio-injection: disabled", "weft.dev/mesh: enabled", true),
        ("", "istio.io/dataplane-mode: ambient", true),
    ] {
        let mut mesh = Mesh::default();
        for document in read_yaml(&Settings::default(), "m.yaml", &text(namespace, pod)) {
            mesh.insert_document(&document);
        }
        let is_enrolled = mesh.pods.values().all(|pod| mesh.is_enrolled(pod));
        assert_eq!(is_enrolled, expected, "{namespace}; {pod}");
    }
}

#[test]
fn a_static_pod_is_known_by_the_uid_that_its_kubelet_gave_it() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd, uid: of-the-object, annotations: \
                {kubernetes.io/config.mirror: of-the-cgroup}}\nspec: {containers: []}\n";
    let documents = read_yaml(&Settings::default(), "m.yaml", text);
    let [Resource::Pod(pod)] = &documents[0].resources[..] else { panic!("{documents:?}") };
    assert_eq!(&*pod.uid, "of-the-cgroup");
}
