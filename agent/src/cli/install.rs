//! `weft install` and `weft upgrade`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::await_condition;
use serde_json::json;

use super::client::block_on;
use super::cluster::{Cluster, ClusterArgs, MESH_LABEL};
use super::duration;
use super::helm::{Helm, Release, ValuesArgs, own_crds};
use super::output::print;
use super::rollout;

/// Who writes the fields that are written here.
pub(super) const FIELD_MANAGER: &str = "weft-cli";
/// Label of a namespace that this command has made.
pub(super) const MADE_BY_LABEL: &str = "weft.dev/made-by";
/// How long an API server may take to serve a kind that it has just been told of.
const ESTABLISHED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    values: ValuesArgs,
    /// Print the manifests, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until everything is ready, and show how far it is
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "5m", value_parser = duration::parse, value_name = "TIME")]
    timeout: Duration,
    /// Forget values that were set before
    #[arg(long)]
    reset_values: bool,
    /// Install also where the installed version is newer
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Whether something has to be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Install,
    Upgrade,
}

pub(super) fn run(args: &InstallArgs, what: What) -> anyhow::Result<ExitCode> {
    let helm = Helm::find(&args.cluster)?;
    if args.dry_run {
        print(helm.template(&args.values)?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let cluster = args.cluster.connect().await?;
        let installed = helm.release()?;
        if what == What::Upgrade && installed.is_none() {
            bail!("nothing is installed in namespace {}: use `weft install`", cluster.namespace);
        }
        if let Some(installed) = &installed
            && !args.force
        {
            refuse_downgrade(&cluster, installed).await?;
        }
        make_namespace(&cluster).await?;
        apply_crds(&cluster).await?;
        helm.upgrade(&args.values, args.reset_values)?;
        let version = env!("CARGO_PKG_VERSION");
        match installed {
            Some(installed) if installed.version != version => {
                print(format_args!("Weft {version} takes the place of {}", installed.version))?;
            }
            Some(_) => print(format_args!("Weft {version} is installed, with these values"))?,
            None => print(format_args!("Weft {version} is installed"))?,
        }
        if args.wait {
            rollout::wait(&cluster, args.timeout).await?;
            print("everything is ready")?;
        }
        print(format_args!(
            "\nNext:\n  weft check                # see that all is well\n  weft enroll NAMESPACE     # \
             take a namespace into the mesh; nothing is restarted"
        ))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// An older version does not know what a newer one has left in the kernel: where the layout of
/// the maps differs, it begins from nothing, and denies until it has its first policy.
async fn refuse_downgrade(cluster: &Cluster, installed: &Release) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let newer = match (numbers(&installed.version), numbers(own)) {
        (Some(installed), Some(own)) => installed > own,
        _ => false,
    };
    if newer {
        bail!(
            "Weft {} is installed, and this is {own}: an older agent does not adopt what a newer one \
             has in the kernel, so traffic would be denied until its first policy is there. Use \
             `weft` {}, or --force",
            installed.version,
            installed.version
        );
    }
    // A development version may have another layout under the same number.
    let layouts = cluster.ask_agents(&["weft", "version", "--client", "-o", "json"]).await?;
    for (pod, answer) in layouts {
        // An agent that does not answer does not hold up who may want to mend it.
        let answer = answer.and_then(|answer| answer.json()).ok();
        let layout = answer.and_then(|version| version.get("layout")?.as_u64());
        let own = u64::from(weft_common::LAYOUT_VERSION);
        if let Some(layout) = layout.filter(|layout| *layout > own) {
            bail!(
                "the agent on {} keeps its maps in layout {layout}, and this version knows {own}: \
                 traffic would be denied until its first policy is there. Use a newer `weft`, or \
                 --force",
                super::cluster::node_of(&pod)
            );
        }
    }
    Ok(())
}

fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let core = version.trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The namespace, with what Pod Security asks for: the agent mounts folders of its node.
async fn make_namespace(cluster: &Cluster) -> anyhow::Result<()> {
    let namespaces = cluster.all::<Namespace>();
    let name = &cluster.namespace;
    let there = namespaces.get_opt(name).await.with_context(|| format!("namespace {name}"))?;
    let mut labels = json!({
        "pod-security.kubernetes.io/enforce": "privileged",
        MESH_LABEL: "disabled",
    });
    let made_here = there.is_none_or(|there| {
        there.metadata.labels.is_some_and(|labels| labels.contains_key(MADE_BY_LABEL))
    });
    if made_here && let Some(labels) = labels.as_object_mut() {
        labels.insert(MADE_BY_LABEL.to_owned(), FIELD_MANAGER.into());
    }
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    });
    namespaces
        .patch(name, &apply(), &Patch::Apply(&namespace))
        .await
        .with_context(|| format!("namespace {name}"))?;
    Ok(())
}

/// Weft's own kinds. Helm installs CRDs and never changes them, so it is not asked to.
async fn apply_crds(cluster: &Cluster) -> anyhow::Result<()> {
    let crds = cluster.all::<CustomResourceDefinition>();
    for crd in own_crds()? {
        let name = crd.pointer("/metadata/name").and_then(|name| name.as_str()).unwrap_or_default();
        crds.patch(name, &apply(), &Patch::Apply(&crd))
            .await
            .with_context(|| format!("CustomResourceDefinition {name}"))?;
        let served = await_condition(crds.clone(), name, is_crd_established());
        tokio::time::timeout(ESTABLISHED_WITHIN, served)
            .await
            .with_context(|| format!("the API server does not serve {name}"))?
            .with_context(|| format!("CustomResourceDefinition {name}"))?;
    }
    Ok(())
}

fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("0.10.0") > numbers("0.9.3"));
        assert_eq!(numbers("v1.2.3-rc.1"), Some((1, 2, 3)));
        assert_eq!(numbers("main"), None);
    }
}
