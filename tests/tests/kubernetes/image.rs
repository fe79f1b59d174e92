//! Weft's own image, judged by others' tools.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use weft_tests::image::{Compression, write_archive};
use weft_tests::kubernetes::{kubernetes_program, weft_image};
use weft_tests::{KubernetesCluster, binary};

use crate::shared::Shared;

const REFERENCE: &str = "weft.test/weft:layout";

pub fn trials(shared: &Arc<Shared>) -> Vec<Trial> {
    shared.trials([("the_image_of_weft_is_one_for_others", layout)])
}

fn layout(cluster: &KubernetesCluster) -> Result<()> {
    let archive = cluster.directory().join("weft.tar");
    let weft = binary("weft")?;
    let binaries = weft.parent().context("weft is in no directory")?;
    write_archive(&archive, &[weft_image(REFERENCE, binaries)?], Compression::Gzip)?;
    validate(&archive)?;

    cluster.import_image(&archive)?;
    let node = cluster.node("node-a")?;
    let address = ["--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"];
    let words = ["ctr"].into_iter().chain(address);
    let checked = node.exec(words.chain(["images", "check", &format!("name=={REFERENCE}")]))?;
    let checked = checked.success()?;
    ensure!(checked.contains("complete"), "{checked}");

    // Its programs find their libraries in it.
    for program in ["weft", "weft-proxy"] {
        cluster.kubectl([
            "run",
            &format!("version-of-{program}"),
            &format!("--image={REFERENCE}"),
            "--restart=Never",
            "--command",
            "--",
            program,
            "--version",
        ])?;
        cluster.kubectl([
            "wait",
            &format!("pod/version-of-{program}"),
            "--for=jsonpath={.status.phase}=Succeeded",
            "--timeout=60s",
        ])?;
    }
    Ok(())
}

/// What Docker's own format is, to a tool that reads it.
fn validate(archive: &Path) -> Result<()> {
    let crane = Command::new(kubernetes_program("crane")?)
        .args(["validate", "--tarball"])
        .arg(archive)
        .output()?;
    let said = String::from_utf8_lossy(&crane.stderr);
    ensure!(crane.status.success(), "crane validate: {said}");
    Ok(())
}
