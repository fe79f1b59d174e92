//! The agent's own place among the pods' cgroups.

use std::path::{Path, PathBuf};

use crate::kernel::{self, Options, PodCgroup, cgroups};

/// Tells the programs that an earlier agent has left which pod is this agent's. To be called before
/// it connects anywhere; without a pod of its own nothing is told.
pub fn announce_own_pod(options: &Options) {
    let pods = &options.pods_cgroup;
    let Some(pod) = own_cgroup(pods).and_then(|own| pod_around(pods, &own)) else { return };
    if let Err(error) = kernel::announce_own_pod(&options.pin_dir, pod.id) {
        tracing::warn!(%error, "it is denied until this agent's programs are attached");
    }
}

/// The cgroup of this process, as a path in the hierarchy of cgroups.
pub(super) fn own_cgroup(pods: &Path) -> Option<PathBuf> {
    let hierarchy = cgroups::find_hierarchy().ok()?;
    cgroup_of_this_process(&hierarchy, pods)
}

/// The cgroup of the pod that a cgroup belongs to.
pub(super) fn pod_around(pods: &Path, cgroup: &Path) -> Option<PodCgroup> {
    let all = cgroups::find_pods(pods).ok()?;
    all.into_iter().find(|pod| cgroup.starts_with(&pod.path) && cgroup != pod.path)
}

/// The cgroup of this process, as a path in the hierarchy that is mounted at `hierarchy`.
///
/// What `/proc/self/cgroup` says is relative to the cgroup namespace: in a container it is not the
/// place in the node's hierarchy, and the process is looked for among the pods' cgroups.
fn cgroup_of_this_process(hierarchy: &Path, pods: &Path) -> Option<PathBuf> {
    let process = std::process::id();
    let listed = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = listed.lines().find_map(|line| line.strip_prefix("0::"))?;
    let path = hierarchy.join(path.trim_start_matches('/'));
    let lists_this = std::fs::read_to_string(path.join("cgroup.procs"))
        .is_ok_and(|listed| listed.lines().any(|line| line.parse() == Ok(process)));
    if lists_this {
        return Some(path);
    }
    cgroups::find_cgroup_of(pods, process).ok().flatten()
}
