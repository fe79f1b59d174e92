//! `weft bug-report`: what somebody needs to know who looks for a fault, in one archive.

mod redact;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, LogParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use super::client::block_on;
use super::cluster::{AT_ONCE, Cluster, ClusterArgs, name_of, node_of};
use super::helm::Helm;
use super::output::print;
use super::progress::Progress;
use redact::{redact_object, redact_text};

/// Of each container's log.
const LOG_LINES: i64 = 20_000;
/// API groups whose objects Weft reads as policy.
const GROUPS: [&str; 3] = ["weft.dev", "cilium.io", "security.istio.io"];
/// Questions to an agent, and the file that each answer goes to.
const QUESTIONS: [(&str, &[&str]); 3] = [
    ("status.json", &["weft", "status", "-o", "json"]),
    ("check.json", &["weft", "check", "--node", "-o", "json"]),
    ("flows.json", &["weft", "observe", "--last", "1000", "-o", "json"]),
];

#[derive(Debug, Args)]
pub(super) struct BugReportArgs {
    /// Where to write it [default: weft-bug-report-<time>.tar.gz here]
    #[arg(long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) fn run(args: &BugReportArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cluster = args.cluster.connect().await?;
        let file = match &args.file {
            Some(file) => file.clone(),
            None => PathBuf::from(format!("weft-bug-report-{}.tar.gz", now()?)),
        };
        let mut report = Report::create(&file)?;
        collect(&cluster, &args.cluster, &mut report).await?;
        let (files, problems) = report.finish()?;
        print(format_args!(
            "{} ({files} files{}). Secrets, tokens and keys are taken out; names, addresses and \
             policies are in it: look through it before you give it away.",
            file.display(),
            match problems {
                0 => String::new(),
                problems => format!(", {problems} things could not be had: see problems.txt"),
            }
        ))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn now() -> anyhow::Result<String> {
    let format = format_description!("[year][month][day]-[hour][minute][second]");
    Ok(OffsetDateTime::now_utc().format(format)?)
}

async fn collect(cluster: &Cluster, args: &ClusterArgs, report: &mut Report) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let steps = 5;
    progress.set("bug report", 0, steps, "versions");
    let server = cluster.client.apiserver_version().await.map(|version| json!(version.git_version));
    report.json(
        "versions.json",
        &json!({
            "weft": env!("CARGO_PKG_VERSION"),
            "layout": weft_common::LAYOUT_VERSION,
            "kubernetes": server.unwrap_or_else(|error| json!(error.to_string())),
        }),
    )?;
    let helm = Helm::find(args).and_then(|helm| helm.set_values());
    report.text("helm-values.yaml", helm)?;

    progress.set("bug report", 1, steps, "objects");
    objects(cluster, report).await?;
    progress.set("bug report", 2, steps, "policies");
    policies(cluster, report).await?;
    progress.set("bug report", 3, steps, "agents");
    for (file, command) in QUESTIONS {
        for (pod, answer) in cluster.ask_agents(command).await? {
            let name = format!("agents/{}/{file}", node_of(&pod));
            report.text(&name, answer.map(|printed| printed.stdout + &printed.stderr))?;
        }
    }
    progress.set("bug report", 4, steps, "logs");
    logs(cluster, report).await?;
    progress.set("bug report", steps, steps, "done");
    Ok(())
}

/// Nodes, namespaces, and everything in Weft's own namespace but Secrets.
async fn objects(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::ConfigMap;
    let all = ListParams::default();
    report.list("objects/nodes.json", cluster.all::<Node>().list(&all).await)?;
    report.list("objects/namespaces.json", cluster.all::<Namespace>().list(&all).await)?;
    report.list("objects/pods.json", cluster.own::<Pod>().list(&all).await)?;
    report.list("objects/daemonsets.json", cluster.own::<DaemonSet>().list(&all).await)?;
    report.list("objects/deployments.json", cluster.own::<Deployment>().list(&all).await)?;
    report.list("objects/configmaps.json", cluster.own::<ConfigMap>().list(&all).await)?;
    report.list("objects/leases.json", cluster.own::<Lease>().list(&all).await)?;
    report.list("objects/events.json", cluster.own::<Event>().list(&all).await)?;
    // What was said about users' policies, in their own namespaces.
    let ours = ListParams::default().fields("reportingComponent=weft-agent");
    report.list("objects/events-of-policies.json", cluster.all::<Event>().list(&ours).await)
}

/// Objects of all kinds that are policy to Weft.
async fn policies(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    let all = ListParams::default();
    report
        .list("policies/networkpolicies.json", cluster.all::<NetworkPolicy>().list(&all).await)?;
    let crds = match cluster.all::<CustomResourceDefinition>().list(&all).await {
        Ok(crds) => crds.items,
        Err(error) => {
            report.problem("CRDs", &error);
            return Ok(());
        }
    };
    for crd in crds.iter().filter(|crd| GROUPS.contains(&crd.spec.group.as_str())) {
        let names = &crd.spec.names;
        let Some(version) = crd.spec.versions.iter().find(|version| version.storage) else {
            continue;
        };
        let kind = GroupVersionKind::gvk(&crd.spec.group, &version.name, &names.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &names.plural);
        let objects: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        report.list(&format!("policies/{}.json", name_of(crd)), objects.list(&all).await)?;
    }
    Ok(())
}

/// The logs of all of Weft's containers, and of what they were before they were restarted.
async fn logs(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let own = ListParams::default().labels(super::rollout::OWN);
    let pods = cluster.own::<Pod>().list(&own).await.context("pods")?;
    let mut wanted = Vec::new();
    for pod in &pods {
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers {
            let restarted = pod
                .status
                .iter()
                .flat_map(|status| status.container_statuses.iter().flatten())
                .any(|status| status.name == container.name && status.restart_count > 0);
            for previous in if restarted { &[false, true][..] } else { &[false] } {
                wanted.push((name_of(pod).to_owned(), container.name.clone(), *previous));
            }
        }
    }
    let pods = cluster.own::<Pod>();
    let read: Vec<_> = futures::stream::iter(wanted)
        .map(|(pod, container, previous)| {
            let pods = pods.clone();
            async move {
                let params = LogParams {
                    container: Some(container.clone()),
                    previous,
                    tail_lines: Some(LOG_LINES),
                    timestamps: true,
                    ..LogParams::default()
                };
                let log = pods.logs(&pod, &params).await;
                let previous = if previous { ".previous" } else { "" };
                (format!("logs/{pod}/{container}{previous}.log"), log)
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    for (name, log) in read {
        report.text(&name, log.map_err(anyhow::Error::from))?;
    }
    Ok(())
}

/// The archive. What cannot be had is a line in `problems.txt`, and stops nothing.
struct Report {
    archive: tar::Builder<GzEncoder<File>>,
    folder: String,
    time: u64,
    files: usize,
    problems: Vec<String>,
}

impl Report {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let folder = path.file_name().and_then(|name| name.to_str()).unwrap_or("weft-bug-report");
        Ok(Self {
            archive: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            folder: folder.trim_end_matches(".gz").trim_end_matches(".tar").to_owned(),
            time: std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()),
            files: 0,
            problems: Vec::new(),
        })
    }

    fn list<K: Resource + Clone + Serialize>(
        &mut self,
        name: &str,
        listed: Result<kube::api::ObjectList<K>, kube::Error>,
    ) -> anyhow::Result<()> {
        match listed {
            Ok(listed) => {
                let mut objects = serde_json::to_value(&listed.items)?;
                objects.as_array_mut().into_iter().flatten().for_each(redact_object);
                self.json(name, &objects)
            }
            Err(error) => {
                self.problem(name, &error);
                Ok(())
            }
        }
    }

    fn json(&mut self, name: &str, value: &Value) -> anyhow::Result<()> {
        self.add(name, &serde_json::to_string_pretty(value)?)
    }

    fn text(&mut self, name: &str, text: anyhow::Result<String>) -> anyhow::Result<()> {
        match text {
            Ok(text) => self.add(name, &text),
            Err(error) => {
                self.problem(name, &error);
                Ok(())
            }
        }
    }

    fn problem(&mut self, name: &str, error: &dyn std::fmt::Display) {
        self.problems.push(format!("{name}: {error:#}"));
    }

    /// Everything passes here, and is redacted here.
    fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let text = redact_text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(self.time);
        let path = format!("{}/{name}", self.folder);
        self.archive.append_data(&mut header, path, text.as_bytes()).context("bug report")?;
        self.files += 1;
        Ok(())
    }

    /// How many files there are, and how many could not be had.
    fn finish(mut self) -> anyhow::Result<(usize, usize)> {
        let problems = self.problems.len();
        if problems > 0 {
            let text = self.problems.join("\n");
            self.add("problems.txt", &text)?;
        }
        let encoder = self.archive.into_inner().context("bug report")?;
        encoder.finish().context("bug report")?;
        Ok((self.files, problems))
    }
}
