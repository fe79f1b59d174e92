//! Weft on the cluster: its image on every node, and its chart.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::KubernetesCluster;

/// Where the chart is installed.
pub const WEFT_NAMESPACE: &str = "weft-system";
/// Images are there already: pods start as quickly as the machine can.
const READY_WITHIN: Duration = Duration::from_secs(180);

impl KubernetesCluster {
    /// Installs the chart of this repository, with values as `helm --set` takes them, and waits
    /// until all of it is ready. The image, `repository:tag`, is on every node
    /// ([`Self::import_image`]).
    ///
    /// # Errors
    /// Helm refuses, or something does not become ready: what became of it is in the error.
    pub fn install_weft(&self, image: &str, values: &[&str]) -> Result<()> {
        let (repository, tag) = image.rsplit_once(':').context("an image has a tag")?;
        let image = format!("image.repository={repository},image.tag={tag},image.pullPolicy=Never");
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft");
        let chart = chart.to_str().context("the chart's path is no text")?;
        let timeout = format!("--timeout={}s", READY_WITHIN.as_secs());
        let namespace = ["--namespace", WEFT_NAMESPACE, "--create-namespace"];
        let words = ["install", "weft", chart, "--wait", &timeout, "--set", &image];
        let values = values.iter().flat_map(|value| ["--set", value]);
        let installed = self.helm(words.into_iter().chain(namespace).chain(values));
        installed.map(drop).with_context(|| self.diagnose_weft())
    }

    /// What became of Weft's pods, and what they logged last, for an error.
    pub fn diagnose_weft(&self) -> String {
        let namespace = ["--namespace", WEFT_NAMESPACE];
        let said = |words: &[&str]| {
            let said = self.kubectl(words.iter().chain(&namespace));
            said.unwrap_or_else(|error| format!("{error:#}"))
        };
        let mut text = said(&["get", "pods,events", "-o", "wide"]);
        for (component, container) in [("agent", "agent"), ("agent", "proxy"), ("ca", "ca")] {
            let selector = format!("--selector=app.kubernetes.io/component={component}");
            let words = ["logs", &selector, "--prefix", "--tail=40", "-c", container];
            text.push_str(&said(&words));
        }
        text
    }
}
