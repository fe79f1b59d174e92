use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use kube::{Api, Resource};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::UninstallArgs;
use super::node::{Report, text};
use crate::cli::EXIT_FOUND_WRONG;
use crate::cli::check::TRUST_BUNDLE;
use crate::cli::cluster::{Cluster, MESH_LABEL, name_of};
use crate::cli::helm::{Helm, own_crds};
use crate::cli::install::MADE_BY_LABEL;
use crate::cli::node_pods::{OnNodes, Outcome, linux_nodes};
use crate::cli::output::{lines, print, table};
use crate::cli::progress::Progress;

/// The API group of Weft's kinds.
const GROUP: &str = "weft.dev";
/// What the CA makes when it runs.
const MADE_BY_THE_CA: &str = "app.kubernetes.io/managed-by=weft-ca";
const CA_ROOTS: &str = "weft-ca-roots";
const CA_LEASE: &str = "weft-ca";
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// In this order: first who would put things back (agents, CA), then what they have left.
pub(super) async fn run(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let helm = Helm::find(&args.cluster)?;
    let cluster = args.cluster.connect().await?;
    let agents = cluster.own::<DaemonSet>().get_opt("weft-agent").await.context("weft-agent")?;
    let objects = if args.keep_crds { BTreeMap::new() } else { objects(&cluster).await? };
    confirm(args, &cluster, &objects)?;
    let mut progress = Progress::new();

    {
        let _step = progress.step("removing the release");
        if !helm.uninstall()? {
            print(format_args!("no release of Weft in namespace {}", cluster.namespace))?;
        }
        await_no_pods(&cluster, args.timeout).await?;
    }
    let nodes = match agents {
        Some(agents) => Some(on_nodes(args, &cluster, &agents, &mut progress).await?),
        None => None,
    };
    {
        let _step = progress.step("removing labels, the trust bundle and CRDs");
        remove_labels(&cluster).await?;
        remove_what_the_ca_made(&cluster, args.keep_root).await?;
        if !args.keep_crds {
            remove_crds(&cluster).await?;
        }
    }
    let clean = match &nodes {
        Some(outcomes) => report(outcomes)?,
        None => {
            print(
                "There was no DaemonSet weft-agent, so the nodes' kernels were not looked at: run \
                 `weft uninstall --node` on each that had an agent.",
            )?;
            false
        }
    };
    let namespace = remove_namespace(&cluster, args.keep_root).await?;
    print(namespace)?;
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FOUND_WRONG) })
}

/// How many objects there are of Weft's kinds, by CRD.
async fn objects(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, usize>> {
    let crds = cluster.all::<CustomResourceDefinition>().list(&Default::default()).await;
    let mut counts = BTreeMap::new();
    for crd in crds.context("CRDs")?.iter().filter(|crd| crd.spec.group == GROUP) {
        let Some(version) = crd.spec.versions.iter().find(|version| version.storage) else {
            continue;
        };
        let kind = GroupVersionKind::gvk(GROUP, &version.name, &crd.spec.names.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &crd.spec.names.plural);
        let all: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let listed = all.list_metadata(&ListParams::default()).await;
        let count = listed.with_context(|| crd.spec.names.plural.clone())?.items.len();
        counts.insert(name_of(crd).to_owned(), count);
    }
    Ok(counts)
}

fn confirm(
    args: &UninstallArgs,
    cluster: &Cluster,
    objects: &BTreeMap<String, usize>,
) -> anyhow::Result<()> {
    if args.yes {
        return Ok(());
    }
    let lost: Vec<String> = objects
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(crd, count)| format!("{count} {crd}"))
        .collect();
    if !stdin().is_terminal() {
        bail!(
            "this removes Weft from {}{}: say --yes, there is nobody to ask",
            cluster.name,
            if lost.is_empty() { String::new() } else { format!(", with {}", lost.join(", ")) }
        );
    }
    ask(&format!("Remove Weft from {} (namespace {})?", cluster.name, cluster.namespace))?;
    if !lost.is_empty() {
        ask(&format!(
            "Its CRDs go, and with them {}. (--keep-crds leaves them.) Remove them?",
            lost.join(", ")
        ))?;
    }
    Ok(())
}

fn ask(question: &str) -> anyhow::Result<()> {
    print!("{question} [y/N] ");
    stdout().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { bail!("nothing was done") }
}

/// Until an agent is gone, its pins are held.
async fn await_no_pods(cluster: &Cluster, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let agents = cluster.agents().await?;
        if agents.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<&str> = agents.iter().map(name_of).collect();
            bail!("the agents' pods do not end: {}", names.join(", "));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn on_nodes(
    args: &UninstallArgs,
    cluster: &Cluster,
    agents: &DaemonSet,
    progress: &mut Progress,
) -> anyhow::Result<BTreeMap<String, Outcome>> {
    let run = OnNodes {
        client: &cluster.client,
        namespace: &cluster.namespace,
        like: agents,
        command: &["weft", "uninstall", "--node", "-o", "json"],
        timeout: args.timeout,
        title: "cleaning nodes",
    };
    run.run(&linux_nodes(&cluster.client).await?, progress).await
}

/// Prints what is left on each node. Returns whether it is nothing, everywhere.
fn report(outcomes: &BTreeMap<String, Outcome>) -> anyhow::Result<bool> {
    let mut rows = table(&["NODE", "KERNEL"]);
    let mut clean = true;
    for (node, outcome) in outcomes {
        let left = match outcome {
            Ok(ended) => {
                let report = ended
                    .printed
                    .lines()
                    .rev()
                    .find_map(|line| serde_json::from_str::<Report>(line).ok());
                clean &= ended.succeeded && report.is_some();
                report.map_or_else(
                    || format!("not known: {}", ended.printed.trim()),
                    |report| text(&report),
                )
            }
            Err(reason) => {
                clean = false;
                format!("not known: {reason}; run `weft uninstall --node` there")
            }
        };
        rows.add_row([node, &left]);
    }
    print(lines(&mut rows))?;
    Ok(clean)
}

/// Takes Weft's label from namespaces, and says which pods have it of their own: it comes from
/// their owners' templates.
async fn remove_labels(cluster: &Cluster) -> anyhow::Result<()> {
    let labelled = ListParams::default().labels(MESH_LABEL);
    let patch = Patch::Merge(json!({"metadata": {"labels": {MESH_LABEL: null}}}));
    let namespaces = cluster.all::<Namespace>();
    for namespace in namespaces.list_metadata(&labelled).await.context("namespaces")? {
        let name = name_of(&namespace);
        namespaces
            .patch(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("namespace {name}"))?;
    }
    let pods = cluster.all::<Pod>().list_metadata(&labelled).await.context("pods")?;
    for pod in pods.items {
        let (name, namespace) = (name_of(&pod), pod.metadata.namespace.as_deref());
        let owned = pod.meta().owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
        let Some(namespace) = namespace.filter(|namespace| *namespace != cluster.namespace) else {
            continue;
        };
        if owned {
            print(format_args!(
                "pod {namespace}/{name} has the label {MESH_LABEL} from its owner's template"
            ))?;
        }
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        gone(pods.patch(name, &PatchParams::default(), &patch).await.map(drop))
            .with_context(|| format!("pod {namespace}/{name}"))?;
    }
    Ok(())
}

/// The trust bundle in every namespace, the root, and who led.
async fn remove_what_the_ca_made(cluster: &Cluster, keep_root: bool) -> anyhow::Result<()> {
    let at_once = DeleteParams::default();
    let bundles = ListParams::default().fields(&format!("metadata.name={TRUST_BUNDLE}"));
    for bundle in cluster.all::<ConfigMap>().list_metadata(&bundles).await.context(TRUST_BUNDLE)? {
        let namespace = bundle.metadata.namespace.as_deref().unwrap_or_default();
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
        gone(maps.delete(TRUST_BUNDLE, &at_once).await.map(drop))
            .with_context(|| format!("ConfigMap {namespace}/{TRUST_BUNDLE}"))?;
    }
    gone(cluster.own::<Lease>().delete(CA_LEASE, &at_once).await.map(drop)).context(CA_LEASE)?;
    if !keep_root {
        // A root that the user has brought carries no label of the CA's.
        let secrets = cluster.own::<Secret>();
        let made = ListParams::default().labels(MADE_BY_THE_CA);
        let mut names = vec![CA_ROOTS.to_owned()];
        names.extend(
            secrets
                .list_metadata(&made)
                .await
                .context("Secrets")?
                .iter()
                .map(|s| name_of(s).into()),
        );
        for name in names {
            gone(secrets.delete(&name, &at_once).await.map(drop))
                .with_context(|| format!("Secret {name}"))?;
        }
    }
    Ok(())
}

/// Weft's CRDs, and those of other dialects that its chart has installed.
async fn remove_crds(cluster: &Cluster) -> anyhow::Result<()> {
    let crds = cluster.all::<CustomResourceDefinition>();
    let all = crds.list_metadata(&ListParams::default()).await.context("CRDs")?;
    let own: Vec<String> = own_crds()?
        .iter()
        .filter_map(|crd| crd.pointer("/metadata/name")?.as_str().map(str::to_owned))
        .collect();
    for crd in all.items {
        let name = name_of(&crd);
        let of_the_group =
            name.ends_with(&format!(".{GROUP}")) || own.iter().any(|own| own == name);
        if of_the_group {
            gone(crds.delete(name, &DeleteParams::default()).await.map(drop))
                .with_context(|| format!("CustomResourceDefinition {name}"))?;
        } else if crd.meta().labels.as_ref().is_some_and(|labels| {
            labels.get("app.kubernetes.io/part-of").is_some_and(|of| of == "weft")
        }) {
            print(format_args!(
                "CustomResourceDefinition {name} (compat.crds) stays: its objects are policies of \
                 another dialect. `kubectl delete crd {name}` removes it, with them"
            ))?;
        }
    }
    Ok(())
}

/// The namespace, if `weft install` has made it and nothing else lives there.
async fn remove_namespace(cluster: &Cluster, keep_root: bool) -> anyhow::Result<String> {
    let namespaces = cluster.all::<Namespace>();
    let name = &cluster.namespace;
    let Some(there) = namespaces.get_opt(name).await.context("namespace")? else {
        return Ok(format!("Weft is gone from {}.", cluster.name));
    };
    let made_here = there.metadata.labels.is_some_and(|labels| labels.contains_key(MADE_BY_LABEL));
    let pods = cluster.own::<Pod>().list_metadata(&ListParams::default()).await.context("pods")?;
    let others = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
    if !made_here || others > 0 || keep_root {
        return Ok(format!("Weft is gone from {}; namespace {name} stays.", cluster.name));
    }
    gone(namespaces.delete(name, &DeleteParams::default()).await.map(drop))
        .with_context(|| format!("namespace {name}"))?;
    Ok(format!("Weft is gone from {}, and so is namespace {name}.", cluster.name))
}

/// What is not there need not be removed.
fn gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result,
    }
}
