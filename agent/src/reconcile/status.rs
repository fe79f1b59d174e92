use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weft_common::{Counter, POD_ENROLLED};
use weft_proto::v1::{MapUse, Program, StatusResponse};

use super::Reconciler;
use crate::identity::SpiffeId;
use crate::kernel::AccelerationState;

/// Above this share a map is worth a warning.
const NEARLY_FULL: f64 = 0.9;
/// Certificates come a moment after the pods that they are for.
const ISSUED_WITHIN: Duration = Duration::from_secs(2);

impl Reconciler {
    /// What is in force, and what is not.
    pub(super) fn status(&self) -> StatusResponse {
        let mut problems: Vec<String> = self.problems.apply.iter().cloned().collect();
        let snapshot = self.outputs.snapshots.current();
        if snapshot.is_none() {
            problems.push(
                match self.kernel.has_policy() {
                    true => {
                        "no policy has been applied yet: the last agent's stays in force, and \
                         new pods are denied"
                    }
                    false => "no policy has been applied yet: every pod is denied",
                }
                .to_owned(),
            );
        }
        problems.extend(self.view.not_in_force());
        problems.extend(self.problems.bindings.iter().cloned());
        problems.extend(self.problems.cgroups.iter().cloned());
        problems.extend(self.problems.attach.iter().cloned());
        problems.extend(self.problems.addresses.iter().cloned());
        problems.extend(self.problems.network.iter().cloned());
        problems.extend(self.problems.cut.iter().cloned());
        problems.extend(self.lacking_certificates());
        let mut warnings: Vec<String> = self.view.warnings().collect();
        self.warn(&mut warnings);

        let acceleration = self.kernel.acceleration();
        let mut status = StatusResponse {
            node: self.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            proxy_connected: self.outputs.connected.load(Ordering::Relaxed) > 0,
            acceleration: match acceleration.state {
                AccelerationState::On => "on",
                AccelerationState::Off => "off",
                AccelerationState::Unbounded => "unbounded",
            }
            .to_owned(),
            acceleration_reason: acceleration.reason.clone(),
            counters: self.counters(),
            ..StatusResponse::default()
        };
        if let Some(snapshot) = snapshot {
            let since = snapshot.applied.duration_since(UNIX_EPOCH).unwrap_or_default();
            status.generation = snapshot.generation;
            status.applied = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            status.services = count(snapshot.mesh.services.len());
            status.policies = count(
                snapshot.mesh.policies.len()
                    + snapshot.mesh.authorization.len()
                    + snapshot.mesh.peer_authentication.len(),
            );
            status.pods = count(snapshot.tables.pods.len());
            let enrolled =
                snapshot.tables.pods.values().filter(|pod| pod.entry.flags & POD_ENROLLED != 0);
            status.enrolled = count(enrolled.count());
        }
        match self.kernel.status() {
            Ok(kernel) => {
                for map in kernel.maps {
                    let Some(entries) = map.entries else { continue };
                    if f64::from(entries) >= NEARLY_FULL * f64::from(map.capacity) {
                        warnings.push(format!(
                            "the map {name} is nearly full ({entries} of {capacity}): raise it \
                             with --map-size {name}=N",
                            name = map.name,
                            capacity = map.capacity,
                        ));
                    }
                    status.maps.push(MapUse {
                        name: map.name,
                        entries: entries.into(),
                        capacity: map.capacity.into(),
                    });
                }
                status.programs = kernel
                    .programs
                    .into_iter()
                    .map(|program| Program {
                        name: program.name,
                        attached: program.attached_to,
                        id: program.id,
                    })
                    .collect();
            }
            Err(error) => problems.push(error.to_string()),
        }
        status.problems = problems;
        status.warnings = warnings;
        status
    }

    /// Identities whose pods cannot be reached through tunnels, nor reach others.
    fn lacking_certificates(&self) -> Vec<String> {
        let now = SystemTime::now();
        let issuing = self
            .outputs
            .snapshots
            .current()
            .and_then(|current| now.duration_since(current.applied).ok())
            .is_none_or(|since| since < ISSUED_WITHIN);
        let lacks = |identity: &&SpiffeId| match self.issued.certificates.get(identity) {
            Some(certificate) => certificate.not_after <= now,
            None => !issuing,
        };
        self.outputs
            .wanted
            .borrow()
            .iter()
            .filter(lacks)
            .map(|identity| {
                format!("{identity}: has no valid certificate; the agent's log says why")
            })
            .collect()
    }

    fn warn(&self, warnings: &mut Vec<String>) {
        if let Some(tables) = &self.tables {
            for name in self.bindings.pending(tables) {
                let uid = tables.pods.get(name).map(|pod| pod.uid.to_string());
                warnings.push(format!(
                    "Pod {name}: no cgroup of a pod with uid {:?} below the pods' root (yet)",
                    uid.unwrap_or_default()
                ));
            }
            for cgroup in self.bindings.unknown(tables) {
                warnings.push(format!(
                    "{}: no manifest names a pod of this node with uid {:?}; its traffic is {}",
                    cgroup.path.display(),
                    cgroup.uid,
                    if self.settings.unknown_allowed { "left alone" } else { "denied" },
                ));
            }
        }
        for (pod, error) in &self.problems.interfaces {
            let name = self.outputs.snapshots.pod(*pod).map(|pod| pod.name.to_string());
            warnings.push(format!(
                "Pod {}: frames that it sends by AF_PACKET are not checked, and pings to it are not \
                 judged: {error}",
                name.unwrap_or_else(|| pod.to_string())
            ));
        }
        if self.view.complete && !self.view.mesh.nodes.contains_key(&self.node) {
            warnings.push(format!(
                "no manifest names the node {}: pods of other nodes cannot be reached through \
                 tunnels, nor this node's from there",
                self.node
            ));
        }
    }

    fn counters(&self) -> HashMap<String, u64> {
        const NAMES: [(Counter, &str); 8] = [
            (Counter::EventsLost, "events_lost"),
            (Counter::Redirected, "redirected"),
            (Counter::HeldByReader, "held_by_reader"),
            (Counter::HeldByOrder, "held_by_order"),
            (Counter::Denied, "denied"),
            (Counter::ConnectionsFull, "connections_full"),
            (Counter::Forged, "forged"),
            (Counter::SocketsFull, "sockets_full"),
        ];
        match self.kernel.counters() {
            Ok(counters) => NAMES
                .iter()
                .map(|(counter, name)| ((*name).to_owned(), counters.get(*counter)))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "counters");
                HashMap::new()
            }
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
