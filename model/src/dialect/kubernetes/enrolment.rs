//! What the labels and annotations of pods and namespaces say about being in the mesh: Weft's own
//! label, and what other meshes call the same, so that a cluster can move without new labels.

use std::collections::BTreeMap;

use crate::dialect::path::Path;
use crate::dialect::reading::Reading;
use crate::mesh::Labels;

/// What carries the labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Namespace,
    Pod,
}

/// A key that speaks of being in a mesh.
struct Mark {
    key: &'static str,
    labels: bool,
    annotations: bool,
    namespaces: bool,
    pods: bool,
    yes: &'static [&'static str],
    no: &'static [&'static str],
}

const OWN: Mark = Mark {
    key: "weft.dev/mesh",
    labels: true,
    annotations: false,
    namespaces: true,
    pods: true,
    yes: &["enabled"],
    no: &["disabled"],
};

/// Go's `strconv.ParseBool`, which Istio and Consul read their values with.
const TRUE: &[&str] = &["true", "1", "t", "T", "TRUE", "True"];
const FALSE: &[&str] = &["false", "0", "f", "F", "FALSE", "False"];

const OTHERS: [Mark; 6] = [
    // istio.io, "Ambient mode": labels of namespaces and pods.
    Mark { key: "istio.io/dataplane-mode", yes: &["ambient"], no: &["none"], ..OWN },
    // istio.io, "Installing the Sidecar": the namespace's label, and the pod's own, which was an
    // annotation once.
    Mark { key: "istio-injection", pods: false, ..OWN },
    Mark {
        key: "sidecar.istio.io/inject",
        annotations: true,
        namespaces: false,
        yes: TRUE,
        no: FALSE,
        ..OWN
    },
    // linkerd.io, "Automatic Proxy Injection": an annotation; some write it as a label.
    Mark { key: "linkerd.io/inject", annotations: true, yes: &["enabled", "ingress"], ..OWN },
    // developer.hashicorp.com, "Annotations and Labels": of pods.
    Mark {
        key: "consul.hashicorp.com/connect-inject",
        annotations: true,
        namespaces: false,
        yes: TRUE,
        no: FALSE,
        ..OWN
    },
    // App Mesh's controller: a label of namespaces, an annotation of pods.
    Mark { key: "appmesh.k8s.aws/sidecarInjectorWebhook", annotations: true, ..OWN },
];

/// Whether pods are to be in the mesh; none if nothing says so. Weft's own label goes before the
/// others; where those differ, one that enrols goes before one that does not, for what was in
/// some mesh should not lose its policies. Reports values that say nothing, and differences.
pub(super) fn of(
    reading: &mut Reading<'_>,
    holder: Holder,
    labels: &Labels,
    annotations: &BTreeMap<String, String>,
) -> Option<bool> {
    let mut says = |mark: &Mark| {
        let read_here = match holder {
            Holder::Namespace => mark.namespaces,
            Holder::Pod => mark.pods,
        };
        // A label goes before an annotation, as with Istio.
        let label = labels.get(mark.key).filter(|_| mark.labels && read_here);
        let annotation = annotations.get(mark.key).filter(|_| mark.annotations && read_here);
        let (field, value) = match (label, annotation) {
            (Some(label), _) => ("labels", &**label),
            (None, Some(annotation)) => ("annotations", annotation.as_str()),
            (None, None) => return None,
        };
        let at = Path::ROOT.fields(&["metadata", field, mark.key]);
        if mark.yes.contains(&value) {
            return Some((at, true));
        }
        if mark.no.contains(&value) {
            return Some((at, false));
        }
        let yes = mark.yes.first().copied().unwrap_or_default();
        let no = mark.no.first().copied().unwrap_or_default();
        reading.warning(
            &at,
            format_args!(
                "\"{value}\" is neither {yes} nor {no}; the {} is ignored",
                match field {
                    "labels" => "label",
                    _ => "annotation",
                }
            ),
        );
        None
    };
    let own = says(&OWN);
    let others: Vec<(Path, bool)> = OTHERS.iter().filter_map(says).collect();
    if let Some((_, own)) = own {
        return Some(own);
    }
    let enrols = others.iter().any(|(_, enrols)| *enrols);
    if let (true, Some((at, _))) = (enrols, others.iter().find(|(_, enrols)| !enrols)) {
        reading.warning(
            at,
            "says no, and what another mesh reads says yes, which goes first; set weft.dev/mesh \
             to enabled or disabled",
        );
    }
    (!others.is_empty()).then_some(enrols)
}

#[cfg(test)]
mod tests;
