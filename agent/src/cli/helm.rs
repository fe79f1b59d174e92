//! The chart that this command carries inside itself, and Helm, which installs it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};
use clap::Args;
use include_dir::{Dir, include_dir};
use serde_json::Value;
use tempfile::TempDir;

use super::cluster::{ClusterArgs, RELEASE};

static CHART: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../charts/weft");
/// The first that takes charts with everything that this one uses.
const OLDEST: (u32, u32) = (3, 8);
/// The first with `--reset-then-reuse-values`.
const RESETS_THEN_REUSES: (u32, u32) = (3, 14);

/// What of the chart is set otherwise.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Chart")]
pub(super) struct ValuesArgs {
    /// Set a value of the chart (repeatable; commas separate several): `mesh.trustDomain=corp.test`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// File with values of the chart (repeatable)
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    values: Vec<PathBuf>,
}

impl ValuesArgs {
    fn arguments(&self) -> Vec<OsString> {
        let files = self.values.iter().flat_map(|file| ["--values".into(), file.into()]);
        let values = self.set.iter().flat_map(|value| ["--set".into(), value.into()]);
        files.chain(values).collect()
    }
}

/// Helm, and where the chart has been unpacked.
pub(super) struct Helm {
    chart: TempDir,
    cluster: ClusterArgs,
    version: (u32, u32),
}

/// A release, as Helm knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// `deployed`, `failed`, `pending-install` and so on.
    pub status: String,
    /// The chart's `appVersion`.
    pub version: String,
}

impl Helm {
    /// Finds Helm in PATH, and unpacks the chart.
    pub(super) fn find(cluster: &ClusterArgs) -> anyhow::Result<Self> {
        let printed = run(Command::new("helm").args(["version", "--template", "{{.Version}}"]))?;
        let text = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
        let version = parse_version(&text)
            .with_context(|| format!("`helm version` says {text:?}, which is no version"))?;
        if version < OLDEST {
            bail!(
                "helm {text} is too old: at least {}.{} is needed (https://helm.sh/docs/intro/install)",
                OLDEST.0,
                OLDEST.1
            );
        }
        let chart = tempfile::Builder::new().prefix("weft-chart-").tempdir().context("chart")?;
        CHART.extract(chart.path()).context("chart")?;
        Ok(Self { chart, cluster: cluster.clone(), version })
    }

    /// The manifests that would be installed.
    pub(super) fn template(&self, values: &ValuesArgs) -> anyhow::Result<String> {
        let mut command = self.command("template", false);
        command.arg(RELEASE).arg(self.chart.path()).arg("--include-crds");
        // Without an API server to ask, Helm takes the oldest that it knows.
        command.args(["--kube-version", "1.30.0"]).args(values.arguments());
        Ok(String::from_utf8_lossy(&run(&mut command)?.stdout).into_owned())
    }

    /// The same, as objects.
    pub(super) fn objects(&self, values: &ValuesArgs) -> anyhow::Result<Vec<Value>> {
        objects(&self.template(values)?)
    }

    /// Installs the chart, or upgrades what is there; values that were set before stay set unless
    /// `reset`. CRDs are not its business: it never changes them.
    pub(super) fn upgrade(&self, values: &ValuesArgs, reset: bool) -> anyhow::Result<()> {
        let mut command = self.command("upgrade", true);
        command.arg("--install").arg(RELEASE).arg(self.chart.path()).arg("--skip-crds");
        command.arg(if reset {
            "--reset-values"
        } else if self.version >= RESETS_THEN_REUSES {
            "--reset-then-reuse-values"
        } else {
            "--reuse-values"
        });
        command.args(values.arguments());
        run(&mut command).map(drop)
    }

    /// Removes the release. Nothing is there: nothing is done.
    pub(super) fn uninstall(&self) -> anyhow::Result<bool> {
        if self.release()?.is_none() {
            return Ok(false);
        }
        run(self.command("uninstall", true).arg(RELEASE)).map(|_| true)
    }

    /// What is installed.
    pub(super) fn release(&self) -> anyhow::Result<Option<Release>> {
        let mut command = self.command("list", true);
        let filter = format!("^{RELEASE}$");
        // Helm 4 lists all states by itself, and its flag for it is gone.
        if self.version.0 < 4 {
            command.arg("--all");
        }
        let printed = run(command.args(["--filter", &filter, "--output", "json"]))?;
        let listed: Value = serde_json::from_slice(&printed.stdout).context("helm list")?;
        let text = |release: &Value, field: &str| {
            release.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        Ok(listed.as_array().and_then(|listed| listed.first()).map(|release| Release {
            status: text(release, "status"),
            version: text(release, "app_version"),
        }))
    }

    /// The values that were set when the release was installed.
    pub(super) fn set_values(&self) -> anyhow::Result<String> {
        let printed = run(self.command("get", true).args(["values", RELEASE]))?;
        Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
    }

    fn command(&self, name: &str, asks_the_cluster: bool) -> Command {
        let mut command = Command::new("helm");
        command.arg(name).arg("--namespace").arg(&self.cluster.namespace);
        if asks_the_cluster {
            if let Some(kubeconfig) = &self.cluster.kubeconfig {
                command.arg("--kubeconfig").arg(kubeconfig);
            }
            if let Some(context) = &self.cluster.context {
                command.arg("--kube-context").arg(context);
            }
        }
        command
    }
}

/// The CRDs of the chart's own kinds.
pub(super) fn own_crds() -> anyhow::Result<Vec<Value>> {
    let Some(directory) = CHART.get_dir("crds") else { return Ok(Vec::new()) };
    let mut crds = Vec::new();
    for file in directory.files().filter(|file| is_yaml(file.path().extension())) {
        let text = file.contents_utf8().with_context(|| file.path().display().to_string())?;
        crds.extend(objects(text)?);
    }
    Ok(crds)
}

fn is_yaml(extension: Option<&OsStr>) -> bool {
    extension.is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// The objects in a stream of YAML documents.
pub(super) fn objects(text: &str) -> anyhow::Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("manifests")?;
    Ok(documents.into_iter().filter(Value::is_object).collect())
}

/// Major and minor.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn run(command: &mut Command) -> anyhow::Result<Output> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow::anyhow!(
            "helm is not in PATH: install it (https://helm.sh/docs/intro/install), or install the \
             chart with what you have (`weft install --dry-run` needs it, too)"
        ),
        _ => anyhow::Error::from(error).context("helm"),
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim();
    let name = command.get_args().next().and_then(OsStr::to_str).unwrap_or_default();
    bail!("`helm {name}`: {}", words.strip_prefix("Error: ").unwrap_or(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_helm_are_read() {
        assert_eq!(parse_version("v4.3"), Some((4, 3)));
        assert_eq!(parse_version("v3.14.2"), Some((3, 14)));
        assert_eq!(parse_version("3.8.0-rc.1+g12"), Some((3, 8)));
        assert_eq!(parse_version("main"), None);
    }

    #[test]
    fn the_chart_is_whole_and_follows_this_version() {
        for file in ["Chart.yaml", "values.yaml", "values.schema.json", ".helmignore"] {
            assert!(CHART.get_file(file).is_some(), "{file}");
        }
        let chart = CHART.get_file("Chart.yaml").and_then(|file| file.contents_utf8()).unwrap();
        let chart = &objects(chart).unwrap()[0];
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    }
}
