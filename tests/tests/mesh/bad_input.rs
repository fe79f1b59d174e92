//! Input that is wrong: what it says, and that what is right stays in force.

use anyhow::{Context, Result, ensure};
use weft_tests::{MeshOptions, PodSpec, eventually};

use crate::shop::{DENY_INGRESS, PORT, Shop, builder, open_with};

/// What `weft status` names as wrong, once something that contains `text` is among it.
fn await_problem(shop: &Shop, text: &str) -> Result<Vec<String>> {
    let node = shop.mesh.node("node-a")?;
    let mut last = Vec::new();
    let found = eventually(&format!("a problem with {text:?}"), || {
        let status = node.status().ok()?;
        let problems = status["problems"].as_array()?.iter();
        last = problems.filter_map(|problem| Some(problem.as_str()?.to_owned())).collect();
        last.iter().any(|problem| problem.contains(text)).then(|| last.clone())
    });
    found.with_context(|| shop.logs())
}

/// Each is wrong in a way of its own; what is said must name the file and the line. A policy
/// of which something cannot be read allows nothing to the pods that it may act on; those here
/// act on `far`, or on a namespace without pods.
const WRONG: [(&str, &str, &str); 5] = [
    ("broken.yaml", "broken.yaml:", "apiVersion: v1\nkind: Pod\nmetadata: {name: [\n"),
    (
        "operator.yaml",
        "operator.yaml:10:",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: operator\n  \
         namespace: elsewhere\nspec:\n  podSelector:\n    matchExpressions:\n    - key: app\n      \
         operator: Near\n      values: [near]\n",
    ),
    (
        "port.yaml",
        "port.yaml:10:",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: port\n  \
         namespace: shop\nspec:\n  podSelector: {matchLabels: {app: far}}\n  ingress:\n  - ports:\n    - \
         port: 70000\n",
    ),
    (
        "cidr.yaml",
        "cidr.yaml:",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: cidr\n  \
         namespace: shop\nspec:\n  podSelector: {matchLabels: {app: far}}\n  ingress:\n  - from:\n    \
         - ipBlock:\n        cidr: 10.0.0.0/33\n",
    ),
    (
        "type.yaml",
        "type.yaml:",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: type\n  namespace: shop\nspec:\n  \
         ports: eighty\n",
    ),
];

/// Invalid documents are told by file and line, and the valid ones act.
#[test]
fn wrong_manifests_are_named_and_the_others_act() -> Result<()> {
    let Some(shop) = open_with(builder(), &Default::default(), &[])? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    shop.expect_answer("shop/client", near)?;
    for (name, expected, text) in WRONG {
        shop.cluster.apply(name, text)?;
        let problems = await_problem(&shop, expected)?;
        let said: Vec<_> = problems.iter().filter(|problem| problem.contains(name)).collect();
        eprintln!("{said:?}");
        shop.expect_answer("shop/client", near)?;
    }
    // Beside a broken document in the same file.
    shop.cluster.apply("mixed.yaml", &format!("{DENY_INGRESS}---\n{}", WRONG[2].2))?;
    shop.await_verdict("shop/client", near, false)?;
    let status = shop.mesh.node("node-a")?.weft(["status"])?;
    ensure!(!status.status.success(), "{status:?}");
    for (name, ..) in WRONG {
        shop.cluster.withdraw(name)?;
    }
    shop.cluster.withdraw("mixed.yaml")?;
    shop.await_verdict("shop/client", near, true)?;
    eventually("no problem to be left", || {
        let status = shop.mesh.node("node-a").ok()?.status().ok()?;
        status["problems"].as_array()?.is_empty().then_some(())
    })?;
    Ok(())
}

/// The last good version of a policy that an edit breaks stays in force, also over a restart of
/// nothing but its own mistakes.
#[test]
fn the_last_good_version_stays_in_force() -> Result<()> {
    let policies = [("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    shop.expect_denied("shop/client", near)?;
    for broken in [
        DENY_INGRESS.replace("podSelector: {}", "podSelector: []"),
        DENY_INGRESS.replace("policyTypes: [Ingress]", "policyTypes: [Inwards]"),
        format!("{DENY_INGRESS}  : ]["),
    ] {
        shop.cluster.apply("deny.yaml", &broken)?;
        await_problem(&shop, "deny.yaml:")?;
        shop.expect_denied("shop/client", near)?;
        shop.cluster.apply("deny.yaml", DENY_INGRESS)?;
        eventually("no problem to be left", || {
            let status = shop.mesh.node("node-a").ok()?.status().ok()?;
            status["problems"].as_array()?.is_empty().then_some(())
        })?;
    }
    shop.cluster.withdraw("deny.yaml")?;
    shop.await_verdict("shop/client", near, true)?;
    Ok(())
}

#[test]
fn unknown_kinds_are_no_reason_to_stop() -> Result<()> {
    const UNKNOWN: &str = "apiVersion: example.com/v1\nkind: Teapot\nmetadata: {name: brown}\n";
    let policies = [("unknown.yaml", UNKNOWN), ("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &Default::default(), &policies)? else { return Ok(()) };
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    shop.expect_denied("shop/client", near)?;
    let manifests = shop.cluster.manifests();
    let node = shop.mesh.node("node-a")?;
    let said = node.weft(["validate".as_ref(), manifests.as_os_str()])?;
    eprintln!("{}", said.stdout);
    ensure!(said.stdout.contains("Teapot"), "{said:?}");
    Ok(())
}

/// A map that is full is an error with its name, its size and what raises it, and opens nothing.
#[test]
fn a_full_map_is_told_and_opens_nothing() -> Result<()> {
    let options = MeshOptions::default().agent_argument("--map-size").agent_argument("PODS=6");
    let policies = [("deny.yaml", DENY_INGRESS)];
    let Some(shop) = open_with(builder(), &options, &policies)? else { return Ok(()) };
    let _server = shop.serve("shop/near")?;
    let near = shop.cluster.pod("shop/near")?.v4(PORT);
    shop.expect_denied("shop/client", near)?;
    let pods = (0..10).map(|number| PodSpec::new("shop", format!("more-{number}"), "node-a"));
    let pods = shop.cluster.add_pods(pods)?;
    let problems = await_problem(&shop, "PODS")?;
    eprintln!("{problems:#?}");
    ensure!(problems.iter().any(|problem| problem.contains("--map-size")), "{problems:#?}");
    for pod in &pods {
        shop.expect_denied(&pod.key(), near)?;
    }
    shop.expect_denied("shop/client", near)?;
    Ok(())
}
