//! An API server that the tests have in common, and for each test namespaces, accounts, pods and
//! authorities of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::DeleteParams;
use kube::config::{AuthInfo, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use libtest_mimic::{Failed, Trial};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_agent::ca::channel::CaAddress;
use weft_agent::ca::client::CaClient;
use weft_tests::eventually_async;
use weft_tests::kubernetes::{ApiServer, Objects};

/// The audience of agents' tokens.
pub const AUDIENCE: &str = "weft-ca";

/// The API server, which the first test to need it starts; nodes are objects only.
#[derive(Default)]
pub struct Shared(Mutex<Option<Result<ApiServer, String>>>);

/// A test.
pub type Test = for<'a> fn(&'a Fixture) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

impl Shared {
    /// An administrator's kubeconfig; that the server does not come up is found out once.
    fn kubeconfig(&self) -> Result<PathBuf> {
        let mut server = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let server = server
            .get_or_insert_with(|| ApiServer::start().map_err(|error| format!("{error:?}")))
            .as_ref();
        let server = server.map_err(|error| anyhow!("the API server did not come up: {error}"))?;
        Ok(server.kubeconfig().to_owned())
    }

    /// Makes a test of each function.
    pub fn trials<const N: usize>(
        self: &Arc<Self>,
        tests: [(&'static str, Test); N],
    ) -> Vec<Trial> {
        let trial = |(name, test): (&'static str, Test)| {
            let shared = self.clone();
            Trial::test(name, move || {
                let kubeconfig =
                    shared.kubeconfig().map_err(|error| Failed::from(format!("{error:?}")))?;
                let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
                let done = runtime.block_on(async {
                    let fixture = Fixture::new(&kubeconfig).await?;
                    test(&fixture).await
                });
                done.map_err(|error| Failed::from(format!("{error:?}")))
            })
        };
        tests.into_iter().map(trial).collect()
    }
}

/// What one test has.
pub struct Fixture {
    /// An administrator.
    pub client: Client,
    /// The same administrator's.
    pub objects: Objects,
    /// The authority's and the agents' namespace.
    pub system: String,
    /// The workloads' namespace.
    pub shop: String,
    /// For files.
    pub directory: TempDir,
    kubeconfig: Kubeconfig,
}

impl Fixture {
    async fn new(kubeconfig: &Path) -> Result<Self> {
        let objects = Objects::new(kubeconfig).await?;
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let directory = tempfile::tempdir()?;
        let unique: String = directory
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_lowercase();
        let (system, shop) = (format!("weft-{unique}"), format!("shop-{unique}"));
        let client = objects.client();
        let fixture = Self { client, objects, system, shop, directory, kubeconfig };
        let (system, shop) = (&fixture.system, &fixture.shop);
        for namespace in [system, shop] {
            fixture
                .apply(&json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace },
                }))
                .await?;
        }
        for (namespace, account) in [
            (system, "weft-ca"),
            (system, "weft-agent"),
            (system, "ztunnel"),
            (shop, "web"),
            (shop, "db"),
        ] {
            fixture
                .apply(&json!({
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": { "name": account, "namespace": namespace },
                }))
                .await?;
        }
        for node in ["node-a", "node-b"] {
            fixture
                .apply(&json!({
                    "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
                }))
                .await?;
        }
        fixture.rights().await?;
        fixture.pod(system, "agent-a", "weft-agent", "node-a").await?;
        fixture.pod(shop, "web", "web", "node-a").await?;
        fixture.pod(shop, "db", "db", "node-b").await?;
        Ok(fixture)
    }

    /// What docs/ca.md says that the authority may do, and nothing else.
    async fn rights(&self) -> Result<()> {
        let rbac = "rbac.authorization.k8s.io";
        let name = self.system.as_str();
        let account = json!([{ "kind": "ServiceAccount", "name": "weft-ca", "namespace": name }]);
        let rule = |group: &str, resource: &str, names: &[&str], verbs: &[&str]| {
            let mut rule = json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
            if !names.is_empty() {
                rule["resourceNames"] = json!(names);
            }
            rule
        };
        let cluster = [
            rule("authentication.k8s.io", "tokenreviews", &[], &["create"]),
            rule("", "pods", &[], &["get", "list", "watch"]),
            rule("", "namespaces", &[], &["list", "watch"]),
            rule("", "configmaps", &[name], &["list", "watch", "create", "patch"]),
        ];
        let own = [
            rule("", "secrets", &[], &["create"]),
            rule("", "secrets", &["weft-ca", "weft-ca-roots"], &["get", "list", "watch", "patch"]),
            rule("coordination.k8s.io", "leases", &[], &["create"]),
            rule("coordination.k8s.io", "leases", &["weft-ca"], &["get", "update"]),
        ];
        let api = format!("{rbac}/v1");
        for (role, namespace, rules) in
            [("ClusterRole", None, &cluster[..]), ("Role", Some(name), &own[..])]
        {
            let mut metadata = json!({ "name": name });
            if let Some(namespace) = namespace {
                metadata["namespace"] = namespace.into();
            }
            self.apply(&json!({
                "apiVersion": api, "kind": role, "metadata": metadata, "rules": rules,
            }))
            .await?;
            self.apply(&json!({
                "apiVersion": api,
                "kind": format!("{role}Binding"),
                "metadata": metadata,
                "roleRef": { "apiGroup": rbac, "kind": role, "name": name },
                "subjects": account,
            }))
            .await?;
        }
        Ok(())
    }

    /// Applies an object.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        self.objects.apply(object).await.map(drop)
    }

    /// Makes a pod on a node.
    pub async fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> Result<()> {
        self.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "containers": [{ "name": "main", "image": "none" }],
            },
        }))
        .await
    }

    /// Removes a pod at once.
    pub async fn remove_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Starts `weft ca` as a replica.
    pub async fn authority(&self, replica: &str, arguments: &[&str]) -> Result<Authority> {
        self.authority_at(replica, "127.0.0.1:0", arguments).await
    }

    /// The same at an address.
    pub async fn authority_at(
        &self,
        replica: &str,
        address: &str,
        arguments: &[&str],
    ) -> Result<Authority> {
        let mut kubeconfig = self.kubeconfig.clone();
        let token = self.objects.token(&self.system, "weft-ca", None, None).await?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info =
                Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
        }
        // A replica that is started again has files of its own.
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let run = format!("{replica}-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let path = self.directory.path().join(format!("{run}.kubeconfig"));
        fs::write(&path, serde_json::to_vec(&kubeconfig)?)?;
        let log = self.directory.path().join(format!("{run}.log"));
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["ca", "--log-format", "json", "--listen", address, "--pod", replica])
            .arg("--kubeconfig")
            .arg(&path)
            .args(["--namespace", &self.system, "--trust-bundle", &self.system])
            .args(["--agent-account", &format!("{}/weft-agent", self.system)])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log)?)
            .spawn()?;
        let mut authority = Authority { child, log, address: ([127, 0, 0, 1], 0).into() };
        let ready = eventually_async("the authority to be ready", async || {
            let lines = authority.lines();
            let ready =
                lines.iter().rev().find(|line| field(line, "message") == "issues certificates");
            Ok(ready.and_then(|line| field(line, "address").parse().ok()))
        });
        let address = ready.await.with_context(|| authority.text())?;
        authority.address = address;
        Ok(authority)
    }

    /// What the authority has published in a namespace.
    pub async fn bundle(&self, namespace: &str) -> Result<Option<ConfigMap>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        Ok(maps.get_opt(&self.system).await?)
    }

    /// The roots in it.
    pub async fn roots(&self, namespace: &str) -> Result<Option<String>> {
        let map = self.bundle(namespace).await?;
        Ok(map.and_then(|map| map.data?.get("ca.crt").cloned()))
    }

    /// An agent's client, with what the kubelet would have mounted.
    pub async fn agent(&self, authority: &Authority, life: Duration) -> Result<Agent> {
        let token =
            self.objects.token(&self.system, "weft-agent", Some(AUDIENCE), Some("agent-a")).await?;
        let roots =
            eventually_async("the trust bundle", async || self.roots(&self.system).await).await?;
        let path = |name: &str| self.directory.path().join(name);
        fs::write(path("token"), &token)?;
        fs::write(path("ca.crt"), roots)?;
        let address = CaAddress {
            address: format!("https://{}", authority.address).parse()?,
            server_name: Some(format!("weft-ca.{}.svc", self.system)),
            token: path("token"),
            roots: path("ca.crt"),
            life,
        };
        let client = CaClient::new(address, Arc::new(|_, _| Vec::new()))?;
        Ok(Agent { client, token: path("token") })
    }
}

/// The agent's side.
pub struct Agent {
    /// Asks.
    pub client: CaClient,
    /// The token's file.
    pub token: PathBuf,
}

/// A replica of `weft ca`, killed when dropped.
pub struct Authority {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Authority {
    /// What it has logged.
    pub fn lines(&self) -> Vec<BTreeMap<String, Value>> {
        self.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The same as text.
    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A line about a certificate for an identity, the last one.
    pub fn about(&self, identity: &str) -> Result<BTreeMap<String, Value>> {
        self.lines()
            .into_iter()
            .rev()
            .find(|line| line.get("identity").is_some_and(|found| found == identity))
            .with_context(|| format!("no line about {identity} in {}", self.text()))
    }

    /// Kills it, as `kill -9` does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// A line's field as text.
pub fn field<'a>(line: &'a BTreeMap<String, Value>, name: &str) -> &'a str {
    line.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Its uid, for whom it matters.
pub async fn uid(fixture: &Fixture, namespace: &str, pod: &str) -> Result<String> {
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), namespace);
    pods.get(pod).await?.uid().context("no uid")
}
