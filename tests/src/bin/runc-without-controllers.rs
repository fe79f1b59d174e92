//! Stands between containerd and runc where cgroup v2 has no controllers, and a kubelet cannot
//! make the pods' cgroups: containers get no limits, and the place that a kubelet would have given
//! them. With the driver `cgroupfs` that is `kubepods[/CLASS]/podUID/CONTAINER`; with `systemd`, runc
//! asks systemd for the scope `cri-containerd-CONTAINER.scope` in the slice
//! `kubepods[-CLASS]-podUID.slice`. The pod's cgroup goes with its last container, as a kubelet has it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::{CgroupDriver, Qos};

/// The root in the node's cgroup namespace.
const CGROUPS: &str = "/sys/fs/cgroup";
const CLASSES: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];
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
        place(driver(&arguments), &path, &container.to_string_lossy())
            .with_context(|| format!("cannot place {}", path.display()))?;
    }
    let mut runc = Command::new("runc");
    runc.args(&arguments);
    if arguments.iter().any(|argument| argument == "delete")
        && let Some(container) = arguments.last()
        && let Some(pod) = pod_of(driver(&arguments), &container.to_string_lossy())
    {
        let status = runc.status().context("cannot run runc")?;
        // It stays as long as there are other containers.
        match driver(&arguments) {
            CgroupDriver::Cgroupfs => drop(fs::remove_dir(pod)),
            CgroupDriver::Systemd => stop_slice(&pod)?,
        }
        std::process::exit(status.code().unwrap_or(1));
    }
    Err(runc.exec()).context("cannot run runc")
}

/// containerd says it to runc.
fn driver(arguments: &[OsString]) -> CgroupDriver {
    let systemd = arguments.iter().any(|argument| argument == "--systemd-cgroup");
    if systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
}

/// The cgroup of the pod that has a cgroup of this container.
fn pod_of(driver: CgroupDriver, container: &str) -> Option<PathBuf> {
    // Where pods of each class are.
    let classes = CLASSES.into_iter().filter_map(|class| {
        let pod = Path::new(CGROUPS).join(driver.root()).join(driver.pod(class, ""));
        pod.parent().map(Path::to_owned)
    });
    let pods = classes.filter_map(|class| fs::read_dir(class).ok()).flatten().flatten();
    let container = driver.container(container);
    pods.map(|pod| pod.path()).find(|pod| pod.join(&container).is_dir())
}

/// Stops the slice of a pod without containers, which takes its cgroup away.
fn stop_slice(pod: &Path) -> Result<()> {
    let left = fs::read_dir(pod).into_iter().flatten().flatten();
    let containers = left.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let slice = pod.file_name().context("a slice has a name")?;
    if containers.count() == 0 {
        Command::new("systemctl")
            .arg("stop")
            .arg(slice)
            .status()
            .context("cannot run systemctl")?;
    }
    Ok(())
}

fn value_of<'a>(option: &str, arguments: &'a [OsString]) -> Option<&'a OsString> {
    let position = arguments.iter().position(|argument| argument == option)?;
    arguments.get(position + 1)
}

fn place(driver: CgroupDriver, path: &Path, container: &str) -> Result<()> {
    let mut configuration: Value = serde_json::from_slice(&fs::read(path)?)?;
    let annotations = &configuration["annotations"];
    let uid = annotations[POD_UID].as_str().unwrap_or("none").to_owned();
    // The pod's first container, its sandbox, knows the class; the others follow it.
    let class = existing(driver, &uid).unwrap_or_else(|| class(annotations));
    let pod = driver.pod(class, &uid);
    let cgroup = match driver {
        CgroupDriver::Cgroupfs => {
            Path::new("/").join(driver.root()).join(pod).join(container).display().to_string()
        }
        // runc's own form: the slice, the scope's prefix, and what follows it.
        CgroupDriver::Systemd => {
            let slice = pod.file_name().context("a slice has a name")?;
            format!("{}:cri-containerd:{container}", slice.display())
        }
    };
    let linux = &mut configuration["linux"];
    let devices = linux["resources"]["devices"].take();
    linux["resources"] = if devices.is_null() { json!({}) } else { json!({ "devices": devices }) };
    linux["cgroupsPath"] = json!(cgroup);
    fs::write(path, serde_json::to_vec(&configuration)?)?;
    Ok(())
}

/// The class of which the pod has a cgroup.
fn existing(driver: CgroupDriver, uid: &str) -> Option<Qos> {
    let pods = Path::new(CGROUPS).join(driver.root());
    CLASSES.into_iter().find(|class| pods.join(driver.pod(*class, uid)).exists())
}

/// The pod's class, by what containerd says of its sandbox. How much memory a pod requests it
/// does not say: who has limits for both, and requests all of its CPU, is taken for guaranteed.
fn class(annotations: &Value) -> Qos {
    let number = |name: &str| -> u64 {
        let value = annotations[format!("io.kubernetes.cri.sandbox-{name}")].as_str();
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    };
    let (shares, quota, period) =
        (number("cpu-shares"), number("cpu-quota"), number("cpu-period").max(1));
    let memory = number("memory");
    match () {
        () if quota > 0 && memory > 0 && shares == quota * 1024 / period => Qos::Guaranteed,
        () if quota == 0 && memory == 0 && shares <= LEAST_SHARES => Qos::BestEffort,
        () => Qos::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use super::class;
    use serde_json::json;
    use weft_tests::Qos;

    fn of(shares: &str, quota: &str, memory: &str) -> Qos {
        class(&json!({
            "io.kubernetes.cri.sandbox-cpu-shares": shares,
            "io.kubernetes.cri.sandbox-cpu-quota": quota,
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
            "io.kubernetes.cri.sandbox-memory": memory,
        }))
    }

    #[test]
    fn tells_the_classes_apart() {
        assert_eq!(of("2", "0", "0"), Qos::BestEffort);
        assert_eq!(of("102", "0", "0"), Qos::Burstable);
        assert_eq!(of("2", "0", "1048576"), Qos::Burstable);
        assert_eq!(of("512", "50000", "1048576"), Qos::Guaranteed);
        assert_eq!(of("102", "50000", "1048576"), Qos::Burstable);
    }
}
