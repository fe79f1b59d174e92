//! Stands between containerd and runc where cgroup v2 has no controllers, and a kubelet cannot
//! make the pods' cgroups: containers get no limits, and the place that a kubelet with the driver
//! `cgroupfs` would have given them (`kubepods[/CLASS]/podUID/CONTAINER`). The pod's cgroup goes with
//! its last container, as a kubelet has it.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// In the node's cgroup namespace.
const PODS: &str = "/sys/fs/cgroup/kubepods";
/// Below it; guaranteed pods have none.
const CLASSES: [&str; 3] = ["", "burstable", "besteffort"];
const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// What a pod without requests has as CPU shares.
const LEAST_SHARES: u64 = 2;

fn main() -> Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.iter().any(|argument| argument == "create")
        && let Some(bundle) = value_of("--bundle", &arguments)
        && let Some(container) = arguments.last()
    {
        let path = Path::new(bundle).join("config.json");
        place(&path, &container.to_string_lossy())
            .with_context(|| format!("cannot place {}", path.display()))?;
    }
    let mut runc = Command::new("runc");
    runc.args(&arguments);
    if arguments.iter().any(|argument| argument == "delete")
        && let Some(container) = arguments.last()
        && let Some(pod) = pod_of(container)
    {
        let status = runc.status().context("cannot run runc")?;
        // It stays as long as there are other containers.
        fs::remove_dir(pod).ok();
        std::process::exit(status.code().unwrap_or(1));
    }
    Err(runc.exec()).context("cannot run runc")
}

/// The cgroup of the pod that has a cgroup of this container.
fn pod_of(container: &OsStr) -> Option<PathBuf> {
    let pods = CLASSES.iter().filter_map(|class| fs::read_dir(Path::new(PODS).join(class)).ok());
    let mut pods = pods.flatten().flatten().map(|pod| pod.path());
    pods.find(|pod| pod.join(container).is_dir())
}

fn value_of<'a>(option: &str, arguments: &'a [OsString]) -> Option<&'a OsString> {
    let position = arguments.iter().position(|argument| argument == option)?;
    arguments.get(position + 1)
}

fn place(path: &Path, container: &str) -> Result<()> {
    let mut configuration: Value = serde_json::from_slice(&fs::read(path)?)?;
    let annotations = &configuration["annotations"];
    let uid = annotations[POD_UID].as_str().unwrap_or("none").to_owned();
    // The pod's first container, its sandbox, knows the class; the others follow it.
    let class = existing(&uid).unwrap_or_else(|| class(annotations).into());
    let cgroup = Path::new("/kubepods").join(class).join(format!("pod{uid}")).join(container);
    let linux = &mut configuration["linux"];
    let devices = linux["resources"]["devices"].take();
    linux["resources"] = if devices.is_null() { json!({}) } else { json!({ "devices": devices }) };
    linux["cgroupsPath"] = json!(cgroup);
    fs::write(path, serde_json::to_vec(&configuration)?)?;
    Ok(())
}

/// Where the pod's cgroup is, below that of all pods.
fn existing(uid: &str) -> Option<PathBuf> {
    let there = |class: &PathBuf| Path::new(PODS).join(class).join(format!("pod{uid}")).exists();
    CLASSES.map(PathBuf::from).into_iter().find(there)
}

/// The pod's class, by what containerd says of its sandbox. How much memory a pod requests it
/// does not say: who has limits for both, and requests all of its CPU, is taken for guaranteed.
fn class(annotations: &Value) -> &'static str {
    let number = |name: &str| -> u64 {
        let value = annotations[format!("io.kubernetes.cri.sandbox-{name}")].as_str();
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    };
    let (shares, quota, period) =
        (number("cpu-shares"), number("cpu-quota"), number("cpu-period").max(1));
    let memory = number("memory");
    match () {
        () if quota > 0 && memory > 0 && shares == quota * 1024 / period => "",
        () if quota == 0 && memory == 0 && shares <= LEAST_SHARES => "besteffort",
        () => "burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::class;
    use serde_json::json;

    fn of(shares: &str, quota: &str, memory: &str) -> &'static str {
        class(&json!({
            "io.kubernetes.cri.sandbox-cpu-shares": shares,
            "io.kubernetes.cri.sandbox-cpu-quota": quota,
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
            "io.kubernetes.cri.sandbox-memory": memory,
        }))
    }

    #[test]
    fn tells_the_classes_apart() {
        assert_eq!(of("2", "0", "0"), "besteffort");
        assert_eq!(of("102", "0", "0"), "burstable");
        assert_eq!(of("2", "0", "1048576"), "burstable");
        assert_eq!(of("512", "50000", "1048576"), "");
        assert_eq!(of("102", "50000", "1048576"), "burstable");
    }
}
