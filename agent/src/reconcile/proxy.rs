//! The node's proxy where it is a container of the agent's own pod: its cgroup is known when it
//! connects, and is another after each of its restarts.

use std::path::PathBuf;

use super::Reconciler;
use super::own_pod::pod_around;
use crate::kernel::cgroups;

impl Reconciler {
    /// Attaches the proxy's programs to the cgroup of the process that has connected as the proxy.
    pub(super) fn attach_proxy(&mut self, process: u32) -> Result<(), String> {
        let cgroup = self.proxy_cgroup(process)?;
        self.kernel.attach_proxy(&cgroup).map_err(|error| error.to_string())?;
        tracing::info!(process, cgroup = %cgroup.display(), "the proxy's programs are attached");
        Ok(())
    }

    /// The process has to be in the agent's own pod: whoever else gets hold of the socket does
    /// not become the node's proxy.
    fn proxy_cgroup(&self, process: u32) -> Result<PathBuf, String> {
        let own = self.own_cgroup.as_deref().ok_or_else(|| {
            format!(
                "the agent does not find its own cgroup below {}: --proxy-cgroup own-pod needs a \
                 pod, and the host's pid namespace (hostPID)",
                self.pods_cgroup.display()
            )
        })?;
        let pod = pod_around(&self.pods_cgroup, own).ok_or_else(|| {
            format!("{} is in no pod: name the proxy's with --proxy-cgroup", own.display())
        })?;
        let pod = pod.path;
        let found = cgroups::find_cgroup_of(&pod, process)
            .map_err(|error| format!("{}: {error}", pod.display()))?;
        match found {
            Some(cgroup) if cgroup != own => Ok(cgroup),
            Some(_) => Err(format!("process {process} is in the agent's own container")),
            None => Err(format!("process {process} is not in the agent's pod {}", pod.display())),
        }
    }
}
