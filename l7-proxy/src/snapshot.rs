//! The configuration: what the agent has sent, and the immutable snapshot that workers read.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use weft_proto::v1;

use crate::identity::SpiffeId;
use crate::tls::Credentials;

/// A pod in the mesh.
#[derive(Debug)]
pub(crate) struct Workload {
    /// `namespace/name`
    pub(crate) key: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) identity: SpiffeId,
    /// Where its node's proxy takes tunnels; empty: at the pod's own address.
    pub(crate) tunnels: Vec<SocketAddr>,
    pub(crate) local: bool,
}

impl Workload {
    /// Where tunnels for connections to `address` of this workload go.
    pub(crate) fn tunnel(&self, address: IpAddr) -> Option<SocketAddr> {
        if self.tunnels.is_empty() {
            return Some(SocketAddr::new(address, HBONE_PORT));
        }
        let same_family = self.tunnels.iter().find(|t| t.is_ipv4() == address.is_ipv4());
        same_family.or(self.tunnels.first()).copied()
    }

    /// Whether a tunnel that carries this workload's connections may come from `address`.
    pub(crate) fn may_come_from(&self, address: IpAddr) -> bool {
        if self.tunnels.is_empty() {
            self.addresses.contains(&address)
        } else {
            self.tunnels.iter().any(|tunnel| tunnel.ip() == address)
        }
    }

    /// The address of its node from which a tunnel to `to` is opened.
    pub(crate) fn node_address(&self, to: SocketAddr) -> Option<IpAddr> {
        self.tunnels.iter().map(SocketAddr::ip).find(|ip| ip.is_ipv4() == to.is_ipv4())
    }
}

/// The port of HBONE.
pub(crate) const HBONE_PORT: u16 = 15008;

/// Everything that a worker needs to know; replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) outbound: Vec<SocketAddr>,
    pub(crate) inbound: Vec<SocketAddr>,
    workloads: HashMap<IpAddr, Arc<Workload>>,
    credentials: HashMap<SpiffeId, Arc<Credentials>>,
    server_names: HashMap<String, SpiffeId>,
}

impl Snapshot {
    pub(crate) fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads.get(&address)
    }

    pub(crate) fn credentials(&self, identity: &SpiffeId) -> Option<&Arc<Credentials>> {
        self.credentials.get(identity)
    }

    /// Whose certificate a tunnel's client asks for: by name, or, without one, by the address
    /// that it connected to.
    pub(crate) fn requested(&self, name: Option<&str>, to: IpAddr) -> Option<&Arc<Credentials>> {
        let identity = match name {
            Some(name) => self.server_names.get(name)?,
            None => &self.workload(to).filter(|workload| workload.local)?.identity,
        };
        self.credentials(identity)
    }
}

/// What the agent has sent so far.
#[derive(Default)]
pub(crate) struct Configuration {
    outbound: Vec<SocketAddr>,
    inbound: Vec<SocketAddr>,
    workloads: HashMap<String, Arc<Workload>>,
    certificates: HashMap<SpiffeId, v1::Certificate>,
    credentials: HashMap<SpiffeId, Arc<Credentials>>,
    root_ders: Vec<CertificateDer<'static>>,
    roots: Option<Arc<RootCertStore>>,
    synced: bool,
}

impl Configuration {
    /// Takes an update. What is invalid in it is returned and left out; the last good version of
    /// it, if there is one, stays.
    pub(crate) fn apply(&mut self, update: v1::Update) -> Vec<anyhow::Error> {
        let mut problems = Vec::new();
        if let Some(settings) = update.settings {
            for (field, list, texts) in [
                ("outbound", &mut self.outbound, settings.outbound),
                ("inbound", &mut self.inbound, settings.inbound),
            ] {
                match addresses(&texts) {
                    Ok(parsed) => *list = parsed,
                    Err(error) => problems.push(error.context(format!("settings.{field}"))),
                }
            }
        }
        for key in &update.removed_workloads {
            self.workloads.remove(key);
        }
        for workload in update.workloads {
            let key = workload.key.clone();
            match read_workload(workload) {
                Ok(workload) => {
                    self.workloads.insert(key, Arc::new(workload));
                }
                Err(error) => problems.push(error.context(format!("workload {key}"))),
            }
        }
        self.apply_certificates(
            update.trust_roots,
            update.removed_certificates,
            update.certificates,
            &mut problems,
        );
        self.synced |= update.synced;
        problems
    }

    /// Whether everything that the agent knew at first has come.
    pub(crate) fn synced(&self) -> bool {
        self.synced
    }

    /// Carries over what has not changed from an earlier stream of updates, so that credentials
    /// keep their identity, and with them the tunnels.
    pub(crate) fn succeed(&mut self, earlier: &Self) {
        if self.root_ders != earlier.root_ders {
            return;
        }
        for (identity, certificate) in &self.certificates {
            if earlier.certificates.get(identity) == Some(certificate)
                && let Some(credentials) = earlier.credentials.get(identity)
            {
                self.credentials.insert(identity.clone(), credentials.clone());
            }
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let workloads = self.workloads.values().flat_map(|workload| {
            workload.addresses.iter().map(move |address| (*address, workload.clone()))
        });
        let server_names = self.credentials.keys().map(|id| (id.server_name(), id.clone()));
        Snapshot {
            outbound: self.outbound.clone(),
            inbound: self.inbound.clone(),
            workloads: workloads.collect(),
            credentials: self.credentials.clone(),
            server_names: server_names.collect(),
        }
    }

    fn apply_certificates(
        &mut self,
        trust_roots: Vec<Vec<u8>>,
        removed: Vec<String>,
        certificates: Vec<v1::Certificate>,
        problems: &mut Vec<anyhow::Error>,
    ) {
        for identity in &removed {
            if let Ok(identity) = SpiffeId::parse(identity) {
                self.certificates.remove(&identity);
                self.credentials.remove(&identity);
            }
        }
        let mut changed = Vec::new();
        for certificate in certificates {
            match SpiffeId::parse(&certificate.identity) {
                Ok(identity) => {
                    if self.certificates.get(&identity) != Some(&certificate) {
                        self.certificates.insert(identity.clone(), certificate);
                        changed.push(identity);
                    }
                }
                Err(error) => problems.push(anyhow::Error::new(error).context("a certificate")),
            }
        }
        if !trust_roots.is_empty() {
            match read_roots(&trust_roots) {
                Ok((ders, _)) if ders == self.root_ders => {}
                Ok((ders, roots)) => {
                    self.root_ders = ders;
                    self.roots = Some(Arc::new(roots));
                    // Credentials hold the roots: all are made anew.
                    changed = self.certificates.keys().cloned().collect();
                }
                Err(error) => problems.push(error.context("trust_roots")),
            }
        }
        for identity in changed {
            let Some(certificate) = self.certificates.get(&identity) else { continue };
            let credentials = Credentials::new(
                identity.clone(),
                &certificate.chain,
                &certificate.key,
                self.roots.clone(),
            );
            match credentials {
                Ok(credentials) => {
                    self.credentials.insert(identity, Arc::new(credentials));
                }
                Err(error) => problems.push(
                    anyhow::Error::new(error).context(format!("the certificate of {identity}")),
                ),
            }
        }
    }
}

fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>> {
    texts
        .iter()
        .map(|text| text.parse().with_context(|| format!("{text:?} is not an ip:port")))
        .collect()
}

fn read_workload(workload: v1::Workload) -> Result<Workload> {
    let addresses_of_pod = workload
        .addresses
        .iter()
        .map(|text| {
            let address: IpAddr =
                text.parse().with_context(|| format!("addresses: {text:?} is not an address"))?;
            Ok(address.to_canonical())
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Workload {
        addresses: addresses_of_pod,
        identity: SpiffeId::parse(&workload.identity).context("identity")?,
        tunnels: addresses(&workload.tunnels).context("tunnels")?,
        local: workload.local,
        key: workload.key,
    })
}

fn read_roots(pems: &[Vec<u8>]) -> Result<(Vec<CertificateDer<'static>>, RootCertStore)> {
    let mut ders = Vec::new();
    let mut roots = RootCertStore::empty();
    for pem in pems {
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.context("not a PEM certificate")?;
            roots.add(der.clone()).context("cannot be a trust root")?;
            ders.push(der);
        }
    }
    anyhow::ensure!(!ders.is_empty(), "no PEM certificate in it");
    Ok((ders, roots))
}
