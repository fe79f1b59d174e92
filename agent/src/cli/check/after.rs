//! A cluster in which Weft is installed.

use std::collections::BTreeSet;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use super::Finding;
use crate::cli::cluster::{Cluster, ClusterArgs, name_of, node_of};
use crate::cli::node_pods::linux_nodes;
use crate::cli::rollout::rollouts;

/// ConfigMap in which the CA publishes its roots.
pub(in crate::cli) const TRUST_BUNDLE: &str = "weft-trust-bundle";

pub(super) async fn check(args: &ClusterArgs) -> anyhow::Result<Vec<Finding>> {
    let cluster = args.connect().await?;
    let mut findings = Vec::new();
    let rollouts = rollouts(&cluster).await?;
    if rollouts.is_empty() {
        findings.push(Finding::missing(
            "installed",
            format!("nothing of Weft in namespace {}", cluster.namespace),
            "weft install, or name its namespace with -n",
        ));
        return Ok(findings);
    }
    for (name, rollout) in rollouts {
        let found = format!("{name}: {} of {} pods ready", rollout.ready, rollout.wanted);
        findings.push(if rollout.is_complete() {
            Finding::ok("installed", found)
        } else {
            Finding::missing("installed", found, "kubectl describe it, or weft install --wait")
        });
    }
    findings.extend(kinds(&cluster).await?);
    findings.push(trust(&cluster).await?);
    findings.extend(agents(&cluster).await?);
    Ok(findings)
}

/// Weft's CRDs.
async fn kinds(cluster: &Cluster) -> anyhow::Result<Option<Finding>> {
    const CHECK: &str = "CRDs";
    let mut wanted = BTreeSet::new();
    for crd in crate::cli::helm::own_crds()? {
        wanted.extend(crd.pointer("/metadata/name").and_then(Value::as_str).map(str::to_owned));
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    let all = cluster
        .all::<CustomResourceDefinition>()
        .list_metadata(&Default::default())
        .await
        .context("CRDs")?;
    let there: BTreeSet<String> = all.iter().map(|crd| name_of(crd).to_owned()).collect();
    let lacking: Vec<&str> = wanted.difference(&there).map(String::as_str).collect();
    Ok(Some(if lacking.is_empty() {
        Finding::ok(CHECK, format!("{} installed", wanted.len()))
    } else {
        Finding::missing(CHECK, format!("{} missing", lacking.join(", ")), "weft upgrade")
    }))
}

/// Whether the CA has published what others trust.
async fn trust(cluster: &Cluster) -> anyhow::Result<Finding> {
    const CHECK: &str = "CA";
    let bundle = cluster.own::<ConfigMap>().get_opt(TRUST_BUNDLE).await.context(TRUST_BUNDLE)?;
    let roots = bundle
        .and_then(|bundle| bundle.data)
        .map(|data| data.values().map(|pem| pem.matches("BEGIN CERTIFICATE").count()).sum())
        .unwrap_or(0_usize);
    Ok(match roots {
        0 => Finding::missing(
            CHECK,
            format!("it has not published its root (ConfigMap {TRUST_BUNDLE})"),
            "see its log: kubectl logs -n weft-system deployment/weft-ca",
        ),
        1 => Finding::ok(CHECK, "its root is published"),
        roots => Finding::ok(CHECK, format!("{roots} roots are published (one is on its way out)")),
    })
}

/// What the agents say of themselves.
async fn agents(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let answers = cluster.ask_agents(&["weft", "status", "-o", "json"]).await?;
    let mut findings = Vec::new();
    let with_agent: BTreeSet<&str> = answers.iter().map(|(pod, _)| node_of(pod)).collect();
    for node in linux_nodes(&cluster.client).await? {
        let node = name_of(&node).to_owned();
        if !with_agent.contains(node.as_str()) {
            findings.push(
                Finding::warning(
                    "agent",
                    "there is none on this node",
                    "its pods cannot be in the mesh: see agent.tolerations and agent.nodeSelector",
                )
                .on(&node),
            );
        }
    }
    for (pod, answer) in &answers {
        let status = match answer {
            Ok(printed) => printed.json().map_err(|error| error.to_string()),
            Err(error) => Err(format!("{error:#}")),
        };
        match status {
            Ok(status) => {
                findings.extend(of_agent(&status).into_iter().map(|one| one.on(node_of(pod))));
            }
            Err(reason) => findings.push(
                Finding::missing(
                    "agent",
                    format!("does not answer: {reason}"),
                    "kubectl logs -n weft-system -c agent on its pod",
                )
                .on(node_of(pod)),
            ),
        }
    }
    Ok(findings)
}

/// One agent's status, as `weft status -o json` has it.
pub(super) fn of_agent(status: &Value) -> Vec<Finding> {
    let text = |field: &str| status.get(field).and_then(Value::as_str).unwrap_or_default();
    let list = |field: &str| {
        let listed = status.get(field).and_then(Value::as_array);
        listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
    };
    let mut findings = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    findings.push(match text("version") {
        version if version == own => Finding::ok("version", version),
        version => Finding::warning(
            "version",
            format!("the agent is {version}, this command {own}"),
            "weft upgrade, or use the `weft` of that version",
        ),
    });
    findings.push(if status.get("applied").is_some_and(|applied| !applied.is_null()) {
        Finding::ok("policy", "in force")
    } else {
        Finding::missing("policy", "none has been applied yet", "see the agent's log")
    });
    findings.push(if status.get("proxy_connected").is_some_and(|yes| yes == true) {
        Finding::ok("proxy", "connected")
    } else {
        Finding::missing(
            "proxy",
            "not connected: nothing goes to other nodes",
            "see the log of the container proxy of the agent's pod",
        )
    });
    findings.extend(list("problems").map(|problem| {
        Finding::missing("in force", problem, "weft status on the node's agent says more")
    }));
    findings.extend(
        list("warnings").map(|warning| Finding::warning("agent", warning, "see docs/security.md")),
    );
    findings
}
