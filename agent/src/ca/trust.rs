//! The roots that are trusted: those that are named now, and, for a while, those that were.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::material;

/// Trusted roots with their history, by their certificate (DER).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots(BTreeMap<Vec<u8>, Times>);

/// When a root came, and when it was named no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// First seen.
    pub since: SystemTime,
    /// No longer named.
    pub retired: Option<SystemTime>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    certificate: String,
    /// Seconds since the epoch.
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retired: Option<u64>,
}

impl Roots {
    /// From what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// With a sentence about what is malformed.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let stored: Vec<Stored> =
            serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let mut roots = BTreeMap::new();
        for root in stored {
            for certificate in material::certificates(root.certificate.as_bytes())? {
                roots.insert(
                    certificate,
                    Times { since: time(root.since), retired: root.retired.map(time) },
                );
            }
        }
        Ok(Self(roots))
    }

    /// In JSON, for a Secret.
    pub fn to_json(&self) -> String {
        let stored: Vec<Stored> = self
            .0
            .iter()
            .map(|(certificate, times)| Stored {
                certificate: material::pem_of(certificate),
                since: seconds(times.since),
                retired: times.retired.map(seconds),
            })
            .collect();
        serde_json::json!(stored).to_string()
    }

    /// Takes over what another replica knows: the earlier time that a root came, and the later
    /// word about its end.
    pub fn merge(&mut self, other: &Self) {
        for (certificate, times) in &other.0 {
            self.0
                .entry(certificate.clone())
                .and_modify(|known| known.since = known.since.min(times.since))
                .or_insert(*times);
        }
    }

    /// `named` are the roots now. Others stay for `grace`, but no longer than they are valid.
    pub fn name(&mut self, named: &[Vec<u8>], now: SystemTime, grace: Duration) {
        for certificate in named {
            // Whole seconds, as they are stored.
            let came = Times { since: time(seconds(now)), retired: None };
            self.0.entry(certificate.clone()).or_insert(came).retired = None;
        }
        self.0.retain(|certificate, times| {
            if !named.contains(certificate) {
                let retired = *times.retired.get_or_insert(time(seconds(now)));
                if retired + grace <= now {
                    return false;
                }
            }
            material::not_after(certificate).is_ok_and(|not_after| now < not_after)
        });
    }

    /// When the next of them goes.
    pub fn next_end(&self, grace: Duration) -> Option<SystemTime> {
        let grace_ends = self.0.values().filter_map(|times| times.retired);
        let ends = self.0.keys().filter_map(|certificate| material::not_after(certificate).ok());
        grace_ends.map(|retired| retired + grace).chain(ends).min()
    }

    /// Since when a root is trusted.
    pub fn since(&self, certificate: &[u8]) -> Option<SystemTime> {
        self.0.get(certificate).map(|times| times.since)
    }

    /// All of them, in PEM.
    pub fn pem(&self) -> String {
        self.0.keys().map(|certificate| material::pem_of(certificate)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
