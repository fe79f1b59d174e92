//! A node: containerd, a kubelet and kube-proxy in namespaces of their own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde_json::json;

use super::images::PAUSE_IMAGE;
use super::options::Cni;
use super::tools::kubernetes_program;
use crate::cgroup::{self, CgroupDriver};
use crate::mesh::binary;
use crate::place::{Host, Place};
use crate::process::{Output, Process, Run};
use crate::wait::eventually_within;

/// How long programs may take to start. Loaded machines are slow.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// How long they may take to end, when they are asked to.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// The file with the node's [`CgroupDriver`], in its data.
const DRIVER: &str = "driver";
/// What stands before runc where cgroup v2 has no controllers.
const RUNTIME_WITHOUT_CONTROLLERS: &str = "runc-without-controllers";
/// Where [`RUNTIME_WITHOUT_CONTROLLERS`] is copied to, below the node's `/var/lib`.
const OWN_PROGRAMS: &str = "weft-test";
/// Where the network's configuration is, on the node.
const NETWORK_DIRECTORY: &str = "/var/lib/cni/net.d";
/// containerd's socket, on the node.
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// Where Debian and most others have it.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Makes the node's namespaces what they are to be, and holds them. Arguments: the name, the
/// directory with the node's data, its first process (`systemd`, or `none`), and the directories of
/// programs.
///
/// A systemd has to be the first process of a pid namespace, in the root of the cgroups that it is
/// to keep. It has one unit, which wants nothing; `/etc` is the machine's.
///
/// Mounts below `/run/netns` go first: a copy of them would keep other clusters' namespaces.
const HOLDER: &str = r#"
set -e
name=$1 data=$2 init=$3
shift 3
hostname "$name"
umount --recursive --lazy /run/netns 2>/dev/null || true
mount --make-rshared /
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
if [ $init = systemd ]; then
    mount -t proc proc /proc
    mount --bind /etc /etc
    mount -o remount,bind,ro /etc
else
    mkdir -p /sys/fs/cgroup/system
    echo 0 > /sys/fs/cgroup/system/cgroup.procs
fi
mount -t tmpfs -o mode=755 tmpfs "$data/run"
mkdir "$data/run/programs" "$data/run/lock" "$data/run/netns"
for directory; do
    mkdir "$data/run/programs/$(basename "$directory")"
    mount --bind "$directory" "$data/run/programs/$(basename "$directory")"
done
mount --rbind "$data/run" /run
mount --bind "$data/log" /var/log
mount --bind "$data/lib" /var/lib
if [ $init = systemd ]; then
    mkdir -p /run/systemd/system
    printf '[Unit]\nDescription=A node\n' > /run/systemd/system/node.target
    echo ready
    container=weft exec SYSTEMD --unit=node.target --show-status=no --log-target=null
fi
echo ready
exec sleep infinity
"#;

/// A node of a [`super::KubernetesCluster`].
#[derive(Debug)]
pub struct KubernetesNode {
    host: Host,
    /// Holds its `/var/lib` and `/var/log`.
    data: PathBuf,
    holder: Mutex<Option<Process>>,
    containerd: Mutex<Option<Process>>,
    kubelet: Mutex<Option<Process>>,
    kube_proxy: Mutex<Option<Process>>,
}

/// What a node needs to be told.
pub(super) struct Setting<'a> {
    pub(super) cni: Cni,
    pub(super) driver: CgroupDriver,
    pub(super) kubelet: KubeletFiles<'a>,
    pub(super) kube_proxy: Option<&'a Path>,
    pub(super) images: &'a Path,
}

/// Files for a kubelet.
pub(super) struct KubeletFiles<'a> {
    pub(super) kubeconfig: &'a Path,
    pub(super) authority: &'a Path,
    pub(super) certificate: &'a Path,
    pub(super) key: &'a Path,
}

impl KubernetesNode {
    pub(super) fn new(host: &Host, data: &Path) -> Self {
        Self {
            host: host.clone(),
            data: data.join(host.name()),
            holder: Mutex::default(),
            containerd: Mutex::default(),
            kubelet: Mutex::default(),
            kube_proxy: Mutex::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// Its network namespace, addresses, and branch of the cgroups.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The root of its file system as another process sees it, where `/run`, `/var/lib`,
    /// `/var/log` and `/sys/fs/bpf` are the node's.
    ///
    /// # Errors
    /// It does not run.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(Path::new("/proc").join(self.holder_id()?).join("root"))
    }

    /// A program that is to run on the node, as root, in all of its namespaces.
    ///
    /// # Errors
    /// It does not run.
    pub fn run(&self, program: impl AsRef<OsStr>) -> Result<Run<'_>> {
        let name = Path::new(program.as_ref()).file_name().unwrap_or_default().to_owned();
        let run = self.host.run("nsenter").args(["--target", &self.holder_id()?]);
        let run = run.args(["--mount", "--uts", "--cgroup"]);
        let run = match self.cgroup_driver() {
            CgroupDriver::Systemd => run.arg("--pid"),
            CgroupDriver::Cgroupfs => run,
        };
        let run = run.arg("--").arg(program);
        Ok(run.called(name).env("PATH", search_path()?))
    }

    /// Runs a program on the node (its name, then its arguments) to its end.
    ///
    /// # Errors
    /// It cannot be started, or does not end in time.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Output> {
        let mut words = words.into_iter();
        let program = words.next().context("a program to run has a name")?;
        self.run(program)?.args(words).output()
    }

    /// Brings images of an archive to the node.
    ///
    /// # Errors
    /// The archive cannot be read, or containerd does not take it.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        let file = File::open(archive).with_context(|| archive.display().to_string())?;
        let import = self.run("ctr")?.args(["--address", CONTAINERD, "--namespace", "k8s.io"]);
        let import = import.args(["images", "import", "-"]).stdin(file).limit(STARTS_WITHIN);
        let output = import.output()?.success();
        output
            .with_context(|| format!("cannot import {} on {}", archive.display(), self.name()))?;
        Ok(())
    }

    /// Starts containerd, in place of the one before; containers live on.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_containerd(&self) -> Result<()> {
        self.stop_containerd();
        let run = self.run("containerd")?.args(["--config", "/var/lib/containerd.toml"]);
        *lock(&self.containerd) = Some(run.spawn()?);
        self.await_containerd()
    }

    /// Kills containerd, as `kill -9` does; containers live on.
    pub fn stop_containerd(&self) {
        *lock(&self.containerd) = None;
    }

    /// Starts the kubelet, in place of the one before.
    ///
    /// # Errors
    /// It cannot be started. It is not ready yet.
    pub fn start_kubelet(&self) -> Result<()> {
        let NodeIps(addresses) = NodeIps::of(&self.host);
        let run = self
            .run("kubelet")?
            .args(["--config", "/var/lib/kubelet/config.json"])
            .args(["--kubeconfig", "/var/lib/kubelet/kubeconfig"])
            .args(["--hostname-override", self.name()])
            .args(["--node-ip", &addresses]);
        self.stop_kubelet();
        *lock(&self.kubelet) = Some(run.spawn()?);
        Ok(())
    }

    /// Stops the kubelet, as a service manager does.
    pub fn stop_kubelet(&self) {
        let mut kubelet = lock(&self.kubelet);
        // In a pid namespace it is a child of who entered that, who passes no signal on.
        let entered = self.cgroup_driver() == CgroupDriver::Systemd;
        if let Some(child) = kubelet.as_ref().filter(|_| entered).and_then(only_child)
            && rustix::process::kill_process(child, Signal::TERM).is_ok()
            && let Some(Err(error)) = kubelet.as_mut().map(|process| process.wait(STOPS_WITHIN))
        {
            tracing::warn!("{error:#}");
        }
        stop(&mut kubelet);
    }

    /// Starts kube-proxy, in place of the one before.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_kube_proxy(&self) -> Result<()> {
        let run = self
            .run("kube-proxy")?
            .args(["--kubeconfig", "/var/lib/kubelet/kube-proxy.kubeconfig"])
            .args(["--proxy-mode", "nftables"])
            .args(["--hostname-override", self.name()])
            // Limits of connection tracking are the machine's, not a namespace's.
            .args(["--conntrack-max-per-core", "0"]);
        *lock(&self.kube_proxy) = Some(run.spawn()?);
        Ok(())
    }

    /// Where containerd looks for the network's configuration, from its next start on.
    ///
    /// # Errors
    /// Its own configuration cannot be written.
    pub fn set_network_directory(&self, directory: &str) -> Result<()> {
        let path = self.data.join("lib/containerd.toml");
        let text = fs::read_to_string(&path)?;
        let before = format!("conf_dir = \"{NETWORK_DIRECTORY}\"");
        ensure!(text.contains(&before), "{} has no {before}", path.display());
        Ok(fs::write(&path, text.replace(&before, &format!("conf_dir = \"{directory}\"")))?)
    }

    /// Takes its power: kills all of its processes at once, also those of containers. With them
    /// goes what a kernel and memory hold: cgroups, pods' network namespaces, rules of the
    /// network, `/run`, the BPF file system. What is on its disk stays (`/var/lib`, `/var/log`),
    /// and so does the link to the other nodes.
    ///
    /// # Errors
    /// Something outlives it.
    pub fn power_off(&self) -> Result<()> {
        cgroup::clear(self.host.branch())?;
        for process in [&self.kubelet, &self.containerd, &self.kube_proxy, &self.holder] {
            *lock(process) = None;
        }
        // Programs are started in this one.
        cgroup::create(self.host.cgroup())?;
        eventually_within(STARTS_WITHIN, "the pods' interfaces to be gone", || {
            let links = self.links().ok()?;
            links.iter().all(|link| link.starts_with("cni")).then_some(())
        })?;
        for link in self.links()? {
            self.host.namespace().ip(&format!("link del {link}\n"))?;
        }
        self.host.exec(["nft", "flush", "ruleset"])?.success().map(drop)
    }

    /// Starts it after [`Self::power_off`]. It is not ready yet.
    ///
    /// # Errors
    /// Something cannot be started.
    pub fn power_on(&self) -> Result<()> {
        self.hold()?;
        self.start_containerd()?;
        self.start_kubelet()?;
        if self.data.join("lib/kubelet/kube-proxy.kubeconfig").exists() {
            self.start_kube_proxy()?;
        }
        Ok(())
    }

    /// Its interfaces, but loopback and the link to the other nodes.
    fn links(&self) -> Result<Vec<String>> {
        let listed = self.host.exec(["ip", "-json", "link"])?.success()?;
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
        let names = listed.iter().filter_map(|link| link["ifname"].as_str());
        Ok(names.filter(|name| !["lo", "eth0"].contains(name)).map(str::to_owned).collect())
    }

    /// What its programs have logged, for an error.
    pub fn logs(&self) -> String {
        let mut text = format!("on {}:\n", self.name());
        for (name, process) in [("containerd", &self.containerd), ("kubelet", &self.kubelet)] {
            if let Some(process) = &*lock(process) {
                text.push_str(&format!("{name}: {}\n", process.tail()));
            }
        }
        text
    }

    /// Makes the namespaces, and brings everything up.
    pub(super) fn start(&self, setting: &Setting<'_>) -> Result<()> {
        self.write_files(setting)?;
        fs::write(self.data.join(DRIVER), format!("{:?}", setting.driver))?;
        self.hold()?;
        // A host has one. Without it, what the node itself sends to a service is refused before
        // kube-proxy's rules give it another destination.
        let namespace = self.host.namespace();
        namespace.ip("route add 0.0.0.0/0 dev eth0\nroute add ::/0 dev eth0\n")?;
        self.start_containerd()?;
        self.import_image(setting.images)?;
        self.start_kubelet()?;
        if setting.kube_proxy.is_some() {
            self.start_kube_proxy()?;
        }
        Ok(())
    }

    /// Leaves its processes running.
    pub(super) fn detach(self) {
        for process in [self.holder, self.containerd, self.kubelet, self.kube_proxy] {
            let process = process.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Some(process) = process {
                process.detach();
            }
        }
    }

    fn hold(&self) -> Result<()> {
        let name = format!("the namespaces of {}", self.name());
        let host = &self.host;
        let (init, of_its_own): (_, &[&str]) = match self.cgroup_driver() {
            CgroupDriver::Systemd => {
                ensure!(Path::new(SYSTEMD).exists(), "{SYSTEMD} is not there: cargo xtask setup");
                ("systemd", &["--pid", "--kill-child"])
            }
            CgroupDriver::Cgroupfs => ("none", &[]),
        };
        let branch = host.branch().to_path_buf();
        let place = Place::new(name, host.namespace().clone(), branch, host.logs().to_path_buf());
        let run = place
            .run("unshare")
            .args(["--mount", "--uts", "--cgroup"])
            .args(of_its_own)
            .args(["sh", "-c", &HOLDER.replace("SYSTEMD", SYSTEMD), "holder", self.name()])
            .arg(&self.data)
            .arg(init)
            .args(program_directories()?)
            .called("holder");
        let mut holder = run.spawn()?;
        holder.await_line("ready")?;
        let id = match self.cgroup_driver() {
            CgroupDriver::Systemd => {
                // It hands controllers down only from a cgroup without other processes.
                cgroup::create(host.cgroup())?;
                fs::write(host.cgroup().join("cgroup.procs"), holder.pid().to_string())?;
                only_child(&holder).context("systemd has ended")?.as_raw_nonzero().to_string()
            }
            CgroupDriver::Cgroupfs => holder.pid().to_string(),
        };
        fs::write(self.data.join("holder"), id)?;
        *lock(&self.holder) = Some(holder);
        match self.cgroup_driver() {
            CgroupDriver::Systemd => self.await_socket("run/systemd/private"),
            CgroupDriver::Cgroupfs => Ok(()),
        }
    }

    /// Who makes the cgroups of its pods.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        let written = fs::read_to_string(self.data.join(DRIVER)).unwrap_or_default();
        let systemd = format!("{:?}", CgroupDriver::Systemd);
        if written == systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }

    /// The process that holds the namespaces; also of a node that another process made.
    fn holder_id(&self) -> Result<String> {
        fs::read_to_string(self.data.join("holder"))
            .with_context(|| format!("{} is not running", self.name()))
    }

    fn await_containerd(&self) -> Result<()> {
        self.await_socket(CONTAINERD.trim_start_matches('/'))
    }

    fn await_socket(&self, path: &str) -> Result<()> {
        let socket = self.root()?.join(path);
        let what = format!("{path} of {}", self.name());
        let waited = eventually_within(STARTS_WITHIN, &what, || {
            // The file is there before anybody listens, and after a kill.
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        waited.map(drop).with_context(|| self.logs())
    }

    fn write_files(&self, setting: &Setting<'_>) -> Result<()> {
        let library = self.data.join("lib");
        for directory in ["run", "log", "lib/kubelet", "lib/cni/net.d"] {
            fs::create_dir_all(self.data.join(directory))?;
        }
        let controllers = self.has_controllers();
        let write = |path: &str, text: &str| {
            let path = library.join(path);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        if !controllers {
            let directory = library.join(OWN_PROGRAMS);
            fs::create_dir_all(&directory)?;
            let program = binary(RUNTIME_WITHOUT_CONTROLLERS)?;
            fs::copy(program, directory.join(RUNTIME_WITHOUT_CONTROLLERS))?;
        }
        let driver = setting.driver;
        write("containerd.toml", &containerd_configuration(driver, controllers)?)?;
        write("kubelet/config.json", &format!("{:#}", kubelet_configuration(driver, controllers)))?;
        write("cni/net.d/10-weft.conflist", &format!("{:#}", self.network(setting.cni)))?;
        let KubeletFiles { kubeconfig, authority, certificate, key } = &setting.kubelet;
        let files = [
            ("kubeconfig", Some(*kubeconfig)),
            ("ca.crt", Some(*authority)),
            ("kubelet.crt", Some(*certificate)),
            ("kubelet.key", Some(*key)),
            ("kube-proxy.kubeconfig", setting.kube_proxy),
        ];
        for (name, source) in files {
            if let Some(source) = source {
                fs::copy(source, library.join("kubelet").join(name))?;
            }
        }
        Ok(())
    }

    /// Whether the kubelet can set limits in cgroup v2: the controllers have to be there, and
    /// handed down to the node.
    fn has_controllers(&self) -> bool {
        const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
        let branch = self.host.branch();
        // The machine's root, the cluster's branch; from there on it is the kubelet's business.
        let above: Vec<_> = branch.ancestors().skip(1).take(2).collect();
        for cgroup in above.iter().rev() {
            for controller in NEEDED {
                let handed =
                    fs::write(cgroup.join("cgroup.subtree_control"), format!("+{controller}"));
                if let Err(error) = handed {
                    tracing::debug!(%error, controller, cgroup = %cgroup.display(), "not there");
                    return false;
                }
            }
        }
        true
    }

    /// The network of its pods, as CNI plugins are told.
    fn network(&self, cni: Cni) -> serde_json::Value {
        let ranges = self.host.addresses().pod_cidrs().map(|subnet| json!([{ "subnet": subnet }]));
        let ipam = json!({
            "type": "host-local",
            "dataDir": "/var/lib/cni/addresses",
            "ranges": ranges,
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        });
        let main = match cni {
            Cni::Ptp => json!({ "type": "ptp", "ipam": ipam }),
            Cni::Bridge => json!({
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": ipam,
            }),
        };
        let ports = json!({
            "type": "portmap",
            "capabilities": { "portMappings": true },
            "backend": "nftables",
        });
        json!({ "cniVersion": "1.0.0", "name": "weft", "plugins": [main, ports] })
    }
}

/// Both addresses, as `--node-ip` takes them.
struct NodeIps(String);

impl NodeIps {
    fn of(host: &Host) -> Self {
        Self(format!("{},{}", host.addresses().ipv4, host.addresses().ipv6))
    }
}

/// Directories of the programs that run on a node.
fn program_directories() -> Result<Vec<PathBuf>> {
    let one_of_each = ["kubelet", "containerd", "runc"];
    let directory = |name: &&str| {
        let program = kubernetes_program(name)?;
        Ok(program.parent().context("a program lies in a directory")?.to_path_buf())
    };
    one_of_each.iter().map(directory).collect()
}

/// Where they are on the node.
fn search_path() -> Result<String> {
    let mut path = String::new();
    for directory in program_directories()? {
        let name = directory.file_name().context("the directory has a name")?;
        path.push_str(&format!("/run/programs/{}:", name.display()));
    }
    Ok(path + "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

fn containerd_configuration(driver: CgroupDriver, controllers: bool) -> Result<String> {
    let systemd = driver == CgroupDriver::Systemd;
    let runtime = if controllers {
        String::new()
    } else {
        format!("BinaryName = \"/var/lib/{OWN_PROGRAMS}/{RUNTIME_WITHOUT_CONTROLLERS}\"")
    };
    let path = search_path()?;
    let plugins: Vec<_> = path.split(':').map(|path| format!("\"{path}\"")).collect();
    let plugins = plugins.join(", ");
    Ok(format!(
        "version = 3\n\
         root = \"/var/lib/containerd\"\n\
         state = \"/run/containerd\"\n\
         [grpc]\n\
         address = \"{CONTAINERD}\"\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\n\
         sandbox = \"{PAUSE_IMAGE}\"\n\
         [plugins.'io.containerd.cri.v1.runtime']\n\
         restrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\n\
         bin_dirs = [{plugins}]\n\
         conf_dir = \"{NETWORK_DIRECTORY}\"\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd]\n\
         default_runtime_name = \"runc\"\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n\
         SystemdCgroup = {systemd}\n\
         {runtime}\n"
    ))
}

fn kubelet_configuration(driver: CgroupDriver, controllers: bool) -> serde_json::Value {
    let driver = match driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Cgroupfs => "cgroupfs",
    };
    let mut configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": driver,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "failSwapOn": false,
        "clusterDNS": [super::dns::ADDRESS],
        "clusterDomain": "cluster.local",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/var/lib/kubelet/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": "/var/lib/kubelet/kubelet.crt",
        "tlsPrivateKeyFile": "/var/lib/kubelet/kubelet.key",
        "resolvConf": "",
        // Its disk is the machine's, how full that is does not matter here.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    });
    if !controllers {
        configuration["cgroupsPerQOS"] = json!(false);
        configuration["enforceNodeAllocatable"] = json!([]);
    }
    configuration
}

/// Asks a process to end, and sees to it.
pub(super) fn stop(process: &mut Option<Process>) {
    if let Some(running) = process
        && running.signal(Signal::TERM).is_ok()
        && let Err(error) = running.wait(STOPS_WITHIN)
    {
        tracing::warn!("{error:#}");
    }
    *process = None;
}

/// The child of a process that has one.
fn only_child(process: &Process) -> Option<Pid> {
    let pid = process.pid();
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(listed.split_whitespace().next()?.parse().ok()?)
}

pub(super) fn lock(process: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    process.lock().unwrap_or_else(PoisonError::into_inner)
}
