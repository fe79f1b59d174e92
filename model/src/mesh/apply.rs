use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Mesh, Name, ObjectRef, Policy, Resource};

impl Mesh {
    /// Replaces what `object` said before by what it says now. Resources of one object are
    /// always replaced together, so that nothing of an earlier version is left. Returns whether
    /// it had said something else.
    pub fn apply(
        &mut self,
        object: &ObjectRef,
        resources: impl IntoIterator<Item = Resource>,
    ) -> bool {
        let resources: Vec<Resource> = resources.into_iter().collect();
        if self.says(object, &resources) {
            return false;
        }
        self.remove(object);
        for resource in resources {
            self.add(object, resource);
        }
        true
    }

    /// Whether `object` says this, and nothing else.
    fn says(&self, object: &ObjectRef, resources: &[Resource]) -> bool {
        let mut policies: Vec<&Arc<Policy>> = Vec::new();
        let mut of_own_kind = 0;
        let mut others = [false; 3];
        for resource in resources {
            of_own_kind += 1;
            let same = match resource {
                Resource::Namespace(new) => self.namespaces.get(&new.name) == Some(new),
                Resource::Node(new) => self.nodes.get(&new.name) == Some(new),
                Resource::Pod(new) => self.pods.get(&new.name) == Some(new),
                Resource::ServiceAccount(new) => self.service_accounts.get(&new.name) == Some(new),
                Resource::Service(new) => self.services.get(&new.name) == Some(new),
                Resource::EndpointSlice(new) => self.endpoint_slices.get(&new.name) == Some(new),
                Resource::Policy(new) => {
                    policies.push(new);
                    of_own_kind -= 1;
                    true
                }
                Resource::Authorization(new) => {
                    of_own_kind -= 1;
                    others[0] = true;
                    self.authorization.get(object) == Some(new)
                }
                Resource::PeerAuthentication(new) => {
                    of_own_kind -= 1;
                    others[1] = true;
                    self.peer_authentication.get(object) == Some(new)
                }
                Resource::Settings(new) => {
                    of_own_kind -= 1;
                    others[2] = true;
                    self.settings_objects.get(object) == Some(new)
                }
            };
            if !same {
                return false;
            }
        }
        let known = self.policies.get(object).map(Vec::as_slice).unwrap_or_default();
        (of_own_kind > 0) == self.contains_own(object)
            && others[0] == self.authorization.contains_key(object)
            && others[1] == self.peer_authentication.contains_key(object)
            && others[2] == self.settings_objects.contains_key(object)
            && known.len() == policies.len()
            && known.iter().zip(policies).all(|(known, new)| known == new)
    }

    /// The objects of a kind that say something.
    pub fn objects(&self, kind: &str) -> Vec<ObjectRef> {
        let named = |name: &Name| ObjectRef { kind: kind.into(), name: name.clone() };
        let of_cluster =
            |name: &Arc<str>| named(&Name { namespace: "".into(), name: name.clone() });
        match kind {
            "Namespace" => self.namespaces.keys().map(of_cluster).collect(),
            "Node" => self.nodes.keys().map(of_cluster).collect(),
            "Pod" => self.pods.keys().map(named).collect(),
            "ServiceAccount" => self.service_accounts.keys().map(named).collect(),
            "Service" => self.services.keys().map(named).collect(),
            "EndpointSlice" => self.endpoint_slices.keys().map(named).collect(),
            _ => {
                let policies = self.policies.keys().chain(self.authorization.keys());
                let all = policies
                    .chain(self.peer_authentication.keys())
                    .chain(self.settings_objects.keys());
                let of_kind: BTreeSet<&ObjectRef> =
                    all.filter(|object| *object.kind == *kind).collect();
                of_kind.into_iter().cloned().collect()
            }
        }
    }

    /// Whether `object` says anything.
    pub fn contains(&self, object: &ObjectRef) -> bool {
        self.contains_own(object)
            || self.policies.contains_key(object)
            || self.authorization.contains_key(object)
            || self.peer_authentication.contains_key(object)
            || self.settings_objects.contains_key(object)
    }

    /// Whether there is what an object of a kind that is no policy's says.
    fn contains_own(&self, object: &ObjectRef) -> bool {
        let name = &object.name;
        match &*object.kind {
            "Namespace" => self.namespaces.contains_key(&name.name),
            "Node" => self.nodes.contains_key(&name.name),
            "Pod" => self.pods.contains_key(name),
            "ServiceAccount" => self.service_accounts.contains_key(name),
            "Service" => self.services.contains_key(name),
            "EndpointSlice" => self.endpoint_slices.contains_key(name),
            _ => false,
        }
    }

    /// Takes away what `object` said. Returns whether there was anything.
    pub fn remove(&mut self, object: &ObjectRef) -> bool {
        let name = &object.name;
        let is_own = match &*object.kind {
            "Namespace" => self.namespaces.remove(&name.name).is_some(),
            "Node" => self.nodes.remove(&name.name).is_some(),
            "Pod" => self.pods.remove(name).is_some(),
            "ServiceAccount" => self.service_accounts.remove(name).is_some(),
            "Service" => self.services.remove(name).is_some(),
            "EndpointSlice" => self.endpoint_slices.remove(name).is_some(),
            _ => false,
        };
        self.stand_ins.remove(object);
        self.versions.remove(object);
        // What stands for a document that is not in force may be of another type.
        let has_policies = self.policies.remove(object).is_some();
        let has_authorization = self.authorization.remove(object).is_some();
        let has_authentication = self.peer_authentication.remove(object).is_some();
        let has_settings = self.settings_objects.remove(object).is_some();
        is_own || has_policies || has_authorization || has_authentication || has_settings
    }

    fn add(&mut self, object: &ObjectRef, resource: Resource) {
        match resource {
            Resource::Namespace(namespace) => {
                self.namespaces.insert(Arc::clone(&namespace.name), namespace);
            }
            Resource::Node(node) => {
                self.nodes.insert(Arc::clone(&node.name), node);
            }
            Resource::Pod(pod) => {
                self.pods.insert(pod.name.clone(), pod);
            }
            Resource::ServiceAccount(account) => {
                self.service_accounts.insert(account.name.clone(), account);
            }
            Resource::Service(service) => {
                self.services.insert(service.name.clone(), service);
            }
            Resource::EndpointSlice(slice) => {
                self.endpoint_slices.insert(slice.name.clone(), slice);
            }
            Resource::Policy(policy) => {
                self.policies.entry(object.clone()).or_default().push(policy);
            }
            Resource::Authorization(policy) => {
                self.authorization.insert(object.clone(), policy);
            }
            Resource::PeerAuthentication(policy) => {
                self.peer_authentication.insert(object.clone(), policy);
            }
            Resource::Settings(settings) => {
                self.settings_objects.insert(object.clone(), settings);
            }
        }
    }
}
