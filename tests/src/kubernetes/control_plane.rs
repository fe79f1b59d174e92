//! etcd, the API server, the controller manager and the scheduler, on a host of their own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};

use super::node::{lock, stop};
use super::pki::{Credentials, Pki, User};
use super::tools::kubernetes_program;
use crate::place::Host;
use crate::process::{Process, Run};
use crate::wait::eventually_within;

/// Where the API server listens.
pub(super) const PORT: u16 = 6443;
/// Addresses of services, as in [`crate::Cluster`].
const SERVICE_ADDRESSES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The first of them is the API server's.
const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];
const ETCD: &str = "http://127.0.0.1:2379";
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// What an API server that has started answers. It is ready before it has made its own objects;
/// these are the last of them.
const READY: [&str; 3] = [
    "/readyz",
    "/api/v1/namespaces/kube-node-lease",
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
];

/// The control plane's processes.
#[derive(Debug)]
pub(super) struct ControlPlane {
    host: Host,
    files: Files,
    controllers: bool,
    etcd: Mutex<Option<Process>>,
    api_server: Mutex<Option<Process>>,
    controller_manager: Mutex<Option<Process>>,
    scheduler: Mutex<Option<Process>>,
}

/// Where its files are.
#[derive(Clone, Debug)]
struct Files {
    pki: PathBuf,
    etcd: PathBuf,
}

impl ControlPlane {
    /// Its files in `pki` have been made by [`Self::prepare`], in this process or another.
    pub(super) fn new(host: &Host, pki: &Path, data: &Path) -> Self {
        let files = Files { pki: pki.to_path_buf(), etcd: data.join("etcd") };
        Self {
            host: host.clone(),
            files,
            controllers: true,
            etcd: Mutex::default(),
            api_server: Mutex::default(),
            controller_manager: Mutex::default(),
            scheduler: Mutex::default(),
        }
    }

    /// Objects alone: nothing makes of a Deployment its pods, or of a namespace its account.
    pub(super) fn without_controllers(self) -> Self {
        Self { controllers: false, ..self }
    }

    /// Makes keys and certificates. `outer` is the address by which the machine knows it.
    pub(super) fn prepare(&self, pki: &Pki, outer: Ipv4Addr) -> Result<()> {
        let addresses = self.host.addresses();
        let mut names: Vec<_> =
            ["localhost", "127.0.0.1", API_SERVICE[0], API_SERVICE[1]].map(str::to_owned).into();
        for suffix in ["", ".default", ".default.svc", ".default.svc.cluster.local"] {
            names.push(format!("kubernetes{suffix}"));
        }
        names.extend([addresses.ipv4.to_string(), addresses.ipv6.to_string(), outer.to_string()]);
        pki.server("kube-apiserver", &names)?;
        let kubelets = User { name: "kube-apiserver-kubelet-client", group: Some(ADMINISTRATORS) };
        pki.client("kubelet-client", &kubelets)?;
        pki.key_pair("service-accounts")?;
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let user = User { name: &format!("system:{name}"), group: None };
            pki.kubeconfig(name, &self.address(), &user)?;
        }
        Ok(())
    }

    /// Starts everything, and waits until the API server is ready.
    pub(super) fn start(&self) -> Result<()> {
        let etcd = self
            .run("etcd")?
            .arg("--data-dir")
            .arg(&self.files.etcd)
            .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--unsafe-no-fsync", "--log-level", "warn"]);
        *lock(&self.etcd) = Some(etcd.spawn()?);
        self.start_api_server()?;
        if self.controllers { self.start_controllers() } else { Ok(()) }
    }

    fn start_controllers(&self) -> Result<()> {
        let manager = self
            .run("kube-controller-manager")?
            .args(["--use-service-account-credentials", "--leader-elect=false"])
            .arg("--service-account-private-key-file")
            .arg(self.pki("service-accounts.key"))
            .arg("--root-ca-file")
            .arg(self.pki("ca.crt"))
            .arg("--cluster-signing-cert-file")
            .arg(self.pki("ca.crt"))
            .arg("--cluster-signing-key-file")
            .arg(self.pki("ca.key"));
        let manager = self.with_kubeconfigs(manager, "kube-controller-manager");
        *lock(&self.controller_manager) = Some(manager.spawn()?);
        let scheduler = self.run("kube-scheduler")?.arg("--leader-elect=false");
        let scheduler = self.with_kubeconfigs(scheduler, "kube-scheduler");
        *lock(&self.scheduler) = Some(scheduler.spawn()?);
        Ok(())
    }

    /// Starts the API server, in place of the one before, and waits until it is ready.
    pub(super) fn start_api_server(&self) -> Result<()> {
        let credentials = |name: &str| Credentials {
            certificate: self.pki(&format!("{name}.crt")),
            key: self.pki(&format!("{name}.key")),
        };
        let (own, kubelets) = (credentials("kube-apiserver"), credentials("kubelet-client"));
        let authority = self.pki("ca.crt");
        let run = self
            .run("kube-apiserver")?
            .args(["--etcd-servers", ETCD])
            .args(["--secure-port", &PORT.to_string()])
            .args(["--advertise-address", &self.host.addresses().ipv4.to_string()])
            .args(["--service-cluster-ip-range", SERVICE_ADDRESSES])
            .args(["--authorization-mode", "Node,RBAC"])
            .args(["--enable-admission-plugins", "NodeRestriction"])
            .args(["--allow-privileged", "--enable-aggregator-routing"])
            .args(["--kubelet-preferred-address-types", "InternalIP"])
            .args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"])
            .arg("--service-account-key-file")
            .arg(self.pki("service-accounts.pub"))
            .arg("--service-account-signing-key-file")
            .arg(self.pki("service-accounts.key"))
            .arg("--client-ca-file")
            .arg(&authority)
            .arg("--kubelet-certificate-authority")
            .arg(&authority)
            .arg("--kubelet-client-certificate")
            .arg(&kubelets.certificate)
            .arg("--kubelet-client-key")
            .arg(&kubelets.key)
            .arg("--tls-cert-file")
            .arg(&own.certificate)
            .arg("--tls-private-key-file")
            .arg(&own.key);
        // It refuses pods of accounts that do not exist, and nobody makes them.
        let without_accounts = ["--disable-admission-plugins", "ServiceAccount"];
        let run = if self.controllers { run } else { run.args(without_accounts) };
        *lock(&self.api_server) = None;
        *lock(&self.api_server) = Some(run.spawn()?);
        self.await_api_server()
    }

    /// Stops the API server. `gracefully` or, as `kill -9` does, at once.
    pub(super) fn stop_api_server(&self, gracefully: bool) {
        let mut process = lock(&self.api_server);
        if gracefully {
            stop(&mut process);
        }
        *process = None;
    }

    /// The API server's address on the network between the nodes.
    pub(super) fn address(&self) -> String {
        format!("https://{}:{PORT}", self.host.addresses().ipv4)
    }

    /// The host that it is on.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// Leaves its processes running.
    pub(super) fn detach(self) {
        for process in [self.etcd, self.api_server, self.controller_manager, self.scheduler] {
            let process = process.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(process) = process {
                process.detach();
            }
        }
    }

    fn await_api_server(&self) -> Result<()> {
        self.host
            .namespace()
            .enter(|| {
                eventually_within(STARTS_WITHIN, "the API server to be ready", || {
                    if lock(&self.api_server).as_mut().is_none_or(|server| !server.is_running()) {
                        return Some(Err(anyhow::anyhow!("the API server ended")));
                    }
                    // Before it is up, asking costs less than starting kubectl to ask.
                    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).ok()?;
                    let answers = |path| {
                        let kubectl = self.run("kubectl")?.arg("--kubeconfig");
                        let kubectl = kubectl.arg(self.pki("admin.kubeconfig"));
                        let answer = kubectl.args(["get", "--raw", path]).output()?;
                        Ok::<_, anyhow::Error>(answer.status.success())
                    };
                    for path in READY {
                        match answers(path) {
                            Ok(true) => {}
                            Ok(false) => return None,
                            Err(error) => return Some(Err(error)),
                        }
                    }
                    Some(Ok(()))
                })?
            })?
            .with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let tail = |process: &Mutex<Option<Process>>| {
            lock(process).as_ref().map(Process::tail).unwrap_or_default()
        };
        format!("API server: {}\netcd: {}", tail(&self.api_server), tail(&self.etcd))
    }

    fn run(&self, program: &str) -> Result<Run<'_>> {
        Ok(self.host.run(kubernetes_program(program)?))
    }

    fn with_kubeconfigs<'a>(&self, mut run: Run<'a>, name: &str) -> Run<'a> {
        let path = self.pki(&format!("{name}.kubeconfig"));
        for option in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            run = run.arg(format!("--{option}")).arg(&path);
        }
        run
    }

    fn pki(&self, file: &str) -> PathBuf {
        self.files.pki.join(file)
    }
}

/// Kubernetes' group of those who may do everything.
pub(super) const ADMINISTRATORS: &str = "system:masters";
