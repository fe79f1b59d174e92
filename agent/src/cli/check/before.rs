//! A cluster, before Weft is installed.

use anyhow::Context as _;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::{CheckArgs, Finding, meshes, node};
use crate::cli::cluster::{Cluster, MESH_LABEL, name_of};
use crate::cli::helm::Helm;
use crate::cli::node_pods::{OnNodes, Outcome, linux_nodes};
use crate::cli::progress::Progress;

/// The first version in whose pods everything that the chart sets is known.
const OLDEST_KUBERNETES: (u32, u32) = (1, 30);
/// What installing creates.
const CREATED: [(&str, &str); 7] = [
    ("", "namespaces"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("networking.k8s.io", "networkpolicies"),
];

pub(super) async fn check(args: &CheckArgs) -> anyhow::Result<Vec<Finding>> {
    let cluster = args.cluster.connect().await?;
    let mut findings = vec![server(&cluster).await?];
    let helm = Helm::find(&args.cluster);
    findings.push(match &helm {
        Ok(_) => Finding::ok("helm", "found"),
        Err(error) => Finding::missing(
            "helm",
            error.to_string(),
            "install Helm (https://helm.sh/docs/intro/install), 3.8 or later, into PATH",
        ),
    });
    findings.push(rights(&cluster).await?);
    findings.extend(meshes::others(&cluster).await?);
    let nodes = linux_nodes(&cluster.client).await?;
    findings.extend(nodes.iter().map(of_node));
    if !args.skip_nodes {
        let like = helm.and_then(|helm| agents(&helm.objects(&args.values)?));
        match like {
            Ok(like) => findings.extend(on_nodes(&cluster, &like, &nodes, args).await?),
            Err(error) => findings.push(Finding::warning(
                "nodes",
                format!("not looked at: {error:#}"),
                "with Helm, or on every node: weft check --node",
            )),
        }
    }
    Ok(findings)
}

async fn server(cluster: &Cluster) -> anyhow::Result<Finding> {
    let version = cluster
        .client
        .apiserver_version()
        .await
        .with_context(|| format!("the API server of {}", cluster.name))?;
    Ok(kubernetes(&version.major, &version.minor, &version.git_version))
}

/// Judged by what `/version` says; providers put a plus behind the minor number.
pub(super) fn kubernetes(major: &str, minor: &str, name: &str) -> Finding {
    const CHECK: &str = "Kubernetes";
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>();
    match (number(major), number(minor)) {
        (Ok(major), Ok(minor)) if (major, minor) < OLDEST_KUBERNETES => Finding::missing(
            CHECK,
            name,
            "upgrade to 1.30 or later: the agent's pod needs appArmorProfile",
        ),
        (Ok(_), Ok(_)) => Finding::ok(CHECK, name),
        _ => Finding::warning(
            CHECK,
            format!("{name:?} is no version"),
            "nothing, if it is 1.30 or later",
        ),
    }
}

/// Whether this user may create what the chart has.
async fn rights(cluster: &Cluster) -> anyhow::Result<Finding> {
    const CHECK: &str = "rights";
    let reviews: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let mut refused = Vec::new();
    for (group, resource) in CREATED {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    namespace: Some(cluster.namespace.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer =
            reviews.create(&PostParams::default(), &review).await.context("what you may do")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            refused.push(resource);
        }
    }
    Ok(if refused.is_empty() {
        Finding::ok(CHECK, "everything that the chart has may be created")
    } else {
        Finding::missing(
            CHECK,
            format!("you may not create {}", refused.join(", ")),
            "install as a cluster administrator (ClusterRole cluster-admin)",
        )
    })
}

/// What the Node says of itself.
fn of_node(node: &Node) -> Finding {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    let release = info.map(|info| info.kernel_version.as_str()).unwrap_or_default();
    node::kernel(release).on(name_of(node))
}

/// The DaemonSet among the chart's objects.
pub(in crate::cli) fn agents(objects: &[serde_json::Value]) -> anyhow::Result<DaemonSet> {
    let set = objects
        .iter()
        .find(|object| object.get("kind").is_some_and(|kind| kind == "DaemonSet"))
        .context("the chart has no DaemonSet")?;
    serde_json::from_value(set.clone()).context("the chart's DaemonSet")
}

/// Runs `weft check --node` on every node, in a namespace that is there for it alone.
async fn on_nodes(
    cluster: &Cluster,
    like: &DaemonSet,
    nodes: &[Node],
    args: &CheckArgs,
) -> anyhow::Result<Vec<Finding>> {
    let namespaces: Api<Namespace> = cluster.all();
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {
            "generateName": "weft-check-",
            "labels": {
                "pod-security.kubernetes.io/enforce": "privileged",
                MESH_LABEL: "disabled",
            },
        },
    }))?;
    let made = namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .context("a namespace for the pods that look at nodes")?;
    let name = name_of(&made).to_owned();
    let run = OnNodes {
        client: &cluster.client,
        namespace: &name,
        like,
        command: &["weft", "check", "--node", "-o", "json"],
        timeout: args.timeout,
        title: "looking at nodes",
    };
    let outcomes = match service_account(cluster, &name).await {
        Ok(()) => run.run(nodes, &mut Progress::new()).await,
        Err(error) => Err(error),
    };
    let removed = namespaces.delete(&name, &DeleteParams::default()).await;
    let outcomes = outcomes?;
    removed.with_context(|| format!("namespace {name} is left behind"))?;
    Ok(outcomes.iter().flat_map(|(node, outcome)| read(node, outcome)).collect())
}

/// Pods are admitted once their namespace has its service account.
async fn service_account(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    use k8s_openapi::api::core::v1::ServiceAccount;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let made = kube::runtime::wait::await_condition(
        accounts,
        "default",
        |account: Option<&ServiceAccount>| account.is_some(),
    );
    tokio::time::timeout(std::time::Duration::from_secs(30), made)
        .await
        .with_context(|| format!("namespace {namespace} gets no service account"))??;
    Ok(())
}

/// What a node's pod has printed: log lines may stand before it.
pub(super) fn read(node: &str, outcome: &Outcome) -> Vec<Finding> {
    const REMEDY: &str = "on the node: weft check --node";
    match outcome {
        Ok(ended) => {
            let printed = ended.printed.lines().rfind(|line| line.starts_with('['));
            let findings = printed.and_then(|line| serde_json::from_str::<Vec<Finding>>(line).ok());
            match findings {
                Some(findings) => findings.into_iter().map(|finding| finding.on(node)).collect(),
                None => {
                    let printed = ended.printed.trim();
                    let found = format!("not looked at: {printed}");
                    vec![Finding::warning("node", found, REMEDY).on(node)]
                }
            }
        }
        Err(reason) => {
            vec![Finding::warning("node", format!("not looked at: {reason}"), REMEDY).on(node)]
        }
    }
}
