//! PeerAuthentication, resolved for a pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::mesh::{Mesh, MtlsMode, Origin, PeerAuthentication, Pod, Scope};

/// A mode and what says so.
pub(super) type Said = (MtlsMode, Option<Origin>);

/// The modes of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Modes {
    /// Of ports that are not named.
    pub(super) default: Said,
    pub(super) ports: BTreeMap<u16, Said>,
}

impl Modes {
    /// Of a port.
    pub(super) fn of(&self, port: u16) -> &Said {
        self.ports.get(&port).unwrap_or(&self.default)
    }

    fn all(&self) -> impl Iterator<Item = &Said> {
        std::iter::once(&self.default).chain(self.ports.values())
    }

    pub(super) fn any_is(&self, mode: MtlsMode) -> bool {
        self.all().any(|(own, _)| *own == mode)
    }

    pub(super) fn all_are(&self, mode: MtlsMode) -> bool {
        self.all().all(|(own, _)| *own == mode)
    }
}

/// The PeerAuthentications by where they act.
#[derive(Debug)]
pub(super) struct PeerAuthentications<'a> {
    of_mesh: Said,
    of_namespaces: HashMap<&'a Arc<str>, Said>,
    of_workloads: HashMap<&'a Arc<str>, Vec<&'a PeerAuthentication>>,
}

impl<'a> PeerAuthentications<'a> {
    pub(super) fn of(mesh: &'a Mesh) -> Self {
        let mut of_mesh = None;
        let mut of_namespaces = HashMap::new();
        let mut of_workloads: HashMap<_, Vec<_>> = HashMap::new();
        let mut by_age: Vec<_> = mesh.peer_authentication.values().collect();
        by_age.sort_by_key(|policy| policy.created);
        // The first of a level counts, also where it says nothing.
        for policy in by_age {
            let said = policy.mode.map(|mode| (mode, Some(policy.origin.clone())));
            match &policy.scope {
                Scope::Mesh => {
                    of_mesh.get_or_insert(said);
                }
                Scope::Namespace(namespace) => {
                    of_namespaces.entry(namespace).or_insert(said);
                }
                Scope::Workload(namespace, _) => {
                    of_workloads.entry(namespace).or_default().push(&**policy);
                }
                Scope::Selected(_) | Scope::Services(..) | Scope::Nothing => {}
            }
        }
        let of_namespaces = of_namespaces
            .into_iter()
            .filter_map(|(namespace, said)| Some((namespace, said?)))
            .collect();
        let of_mesh = of_mesh.flatten().unwrap_or((mesh.settings.default_mtls, None));
        Self { of_mesh, of_namespaces, of_workloads }
    }

    pub(super) fn modes(&self, pod: &Pod) -> Modes {
        let own = self.of_workloads.get(&pod.name.namespace).into_iter().flatten().find(|policy| {
            matches!(&policy.scope, Scope::Workload(_, selector) if selector.matches(&pod.labels))
        });
        let default = own
            .and_then(|policy| policy.mode.map(|mode| (mode, Some(policy.origin.clone()))))
            .or_else(|| self.of_namespaces.get(&pod.name.namespace).cloned())
            .unwrap_or_else(|| self.of_mesh.clone());
        let ports = own
            .into_iter()
            .flat_map(|policy| &policy.ports)
            .filter_map(|(port, (mode, origin))| Some((*port, ((*mode)?, Some(origin.clone())))))
            .collect();
        Modes { default, ports }
    }
}
