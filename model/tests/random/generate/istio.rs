//! AuthorizationPolicies and PeerAuthentications by chance.

use std::sync::Arc;

use weft_model::mesh::*;

use super::{ACCOUNTS, Generator, NAMESPACES, PORTS, origin};

impl Generator {
    pub fn put_authorization(&mut self, mesh: &mut Mesh) {
        let kind = "AuthorizationPolicy";
        let name = Name {
            namespace: (*self.of(&NAMESPACES)).into(),
            name: format!("policy-{}", self.rng.u8(0..12)).into(),
        };
        let rules = (0..self.rng.usize(0..4))
            .map(|index| AuthorizationRule {
                origin: origin(kind, &name, &format!("spec.rules[{index}]")),
                from: (0..self.few()).map(|_| self.source()).collect(),
                to: (0..self.few()).map(|_| self.operation()).collect(),
                when: (0..self.few()).map(|_| self.condition()).collect(),
                needs: self.needs(),
            })
            .collect();
        let policy = AuthorizationPolicy {
            origin: origin(kind, &name, "spec"),
            scope: self.scope(&name.namespace),
            action: *self.of(&[
                Action::Allow,
                Action::Allow,
                Action::Allow,
                Action::Deny,
                Action::Deny,
                Action::Audit,
                Action::Custom,
            ]),
            rules,
        };
        mesh.authorization.insert(ObjectRef { kind: kind.into(), name }, Arc::new(policy));
    }

    pub fn put_peer_authentication(&mut self, mesh: &mut Mesh) {
        let kind = "PeerAuthentication";
        let name = Name {
            namespace: (*self.of(&NAMESPACES)).into(),
            name: format!("policy-{}", self.rng.u8(0..6)).into(),
        };
        let mode = |generator: &mut Self| {
            *generator.of(&[
                None,
                Some(MtlsMode::Strict),
                Some(MtlsMode::Permissive),
                Some(MtlsMode::Disable),
            ])
        };
        let ports = (0..self.few())
            .map(|index| {
                let field = origin(kind, &name, &format!("spec.portLevelMtls[{index}]"));
                (*self.of(&PORTS), (mode(self), field))
            })
            .collect();
        let policy = PeerAuthentication {
            origin: origin(kind, &name, "spec"),
            created: *self.of(&[None, Some(1), Some(2)]),
            scope: self.scope(&name.namespace),
            mode: mode(self),
            ports,
        };
        mesh.peer_authentication.insert(ObjectRef { kind: kind.into(), name }, Arc::new(policy));
    }

    fn scope(&mut self, namespace: &Arc<str>) -> Scope {
        match self.rng.u8(0..8) {
            0 => Scope::Mesh,
            1 => Scope::Selected(self.selector()),
            2..=3 => Scope::Namespace(namespace.clone()),
            4..=5 => Scope::Workload(namespace.clone(), self.selector()),
            6 => Scope::Services(namespace.clone(), vec!["web".into(), "kubernetes".into()]),
            _ => Scope::Nothing,
        }
    }

    fn source(&mut self) -> Source {
        let mut source = Source { needs_http: self.chance(6), ..Source::default() };
        for _ in 0..self.rng.usize(1..3) {
            match self.rng.u8(0..8) {
                0 => source.principals.push(self.principal()),
                1 => source.not_principals.push(self.principal()),
                2 => source.namespaces.push(self.namespace_match()),
                3 => source.not_namespaces.push(self.namespace_match()),
                4 => source.service_accounts.push(self.account()),
                5 => source.not_service_accounts.push(self.account()),
                6 => source.ip_blocks.push(self.block()),
                _ => source.not_ip_blocks.push(self.block()),
            }
        }
        source
    }

    fn operation(&mut self) -> Operation {
        let mut operation = Operation { needs_http: self.chance(6), ..Operation::default() };
        for _ in 0..self.rng.usize(0..3) {
            let port = *self.of(&PORTS);
            if self.chance(3) {
                operation.not_ports.push(port);
            } else {
                operation.ports.push(port);
            }
        }
        operation
    }

    fn condition(&mut self) -> Condition {
        let blocks =
            |generator: &mut Self| (0..generator.few()).map(|_| generator.block()).collect();
        match self.rng.u8(0..5) {
            0 => Condition::SourceIp { values: blocks(self), not_values: blocks(self) },
            1 => Condition::SourceNamespace {
                values: (0..self.few()).map(|_| self.namespace_match()).collect(),
                not_values: (0..self.few()).map(|_| self.namespace_match()).collect(),
            },
            2 => Condition::SourcePrincipal {
                values: (0..self.few()).map(|_| self.principal()).collect(),
                not_values: (0..self.few()).map(|_| self.principal()).collect(),
            },
            3 => Condition::DestinationIp { values: blocks(self), not_values: blocks(self) },
            _ => Condition::DestinationPort {
                values: (0..self.few()).map(|_| *self.of(&PORTS)).collect(),
                not_values: (0..self.few()).map(|_| *self.of(&PORTS)).collect(),
            },
        }
    }

    pub(super) fn principal(&mut self) -> StringMatch {
        let namespace = *self.of(&NAMESPACES);
        let account = *self.of(&ACCOUNTS);
        match self.rng.u8(0..4) {
            0 => StringMatch::Prefix(format!("cluster.local/ns/{namespace}/").into()),
            1 => StringMatch::Suffix(format!("/sa/{account}").into()),
            2 => StringMatch::Present,
            _ => StringMatch::Exact(format!("cluster.local/ns/{namespace}/sa/{account}").into()),
        }
    }

    fn namespace_match(&mut self) -> StringMatch {
        let namespace = *self.of(&NAMESPACES);
        match self.rng.u8(0..4) {
            0 => StringMatch::Prefix(namespace[..2].into()),
            1 => StringMatch::Suffix(namespace[2..].into()),
            2 => StringMatch::Present,
            _ => StringMatch::Exact(namespace.into()),
        }
    }

    fn account(&mut self) -> (Arc<str>, Arc<str>) {
        ((*self.of(&NAMESPACES)).into(), (*self.of(&ACCOUNTS)).into())
    }
}
