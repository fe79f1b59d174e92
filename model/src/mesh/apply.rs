use std::sync::Arc;

use super::{Mesh, ObjectRef, Resource};

impl Mesh {
    /// Replaces what `object` said before by what it says now. Resources of one object are
    /// always replaced together, so that nothing of an earlier version is left.
    pub fn apply(&mut self, object: &ObjectRef, resources: impl IntoIterator<Item = Resource>) {
        self.remove(object);
        for resource in resources {
            self.add(object, resource);
        }
    }

    /// Whether `object` says anything.
    pub fn contains(&self, object: &ObjectRef) -> bool {
        let name = &object.name;
        match &*object.kind {
            "Namespace" => self.namespaces.contains_key(&name.name),
            "Node" => self.nodes.contains_key(&name.name),
            "Pod" => self.pods.contains_key(name),
            "ServiceAccount" => self.service_accounts.contains_key(name),
            "Service" => self.services.contains_key(name),
            "EndpointSlice" => self.endpoint_slices.contains_key(name),
            _ => {
                self.policies.contains_key(object)
                    || self.authorization.contains_key(object)
                    || self.peer_authentication.contains_key(object)
            }
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
        // What stands for a document that is not in force may be of another type.
        let has_policies = self.policies.remove(object).is_some();
        let has_authorization = self.authorization.remove(object).is_some();
        let has_authentication = self.peer_authentication.remove(object).is_some();
        is_own || has_policies || has_authorization || has_authentication
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
                self.pods.insert(pod.name.clone(), Arc::new(pod));
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
                self.policies.entry(object.clone()).or_default().push(Arc::new(policy));
            }
            Resource::Authorization(policy) => {
                self.authorization.insert(object.clone(), Arc::new(policy));
            }
            Resource::PeerAuthentication(policy) => {
                self.peer_authentication.insert(object.clone(), Arc::new(policy));
            }
        }
    }
}
