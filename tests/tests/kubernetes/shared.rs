//! The cluster that the tests have in common.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};
use weft_tests::{KubernetesCluster, KubernetesOptions};

/// A cluster that the first test to need it starts.
pub struct Shared {
    options: KubernetesOptions,
    cluster: Mutex<Option<Result<Arc<KubernetesCluster>, String>>>,
}

/// A test on the cluster.
pub type Test = fn(&KubernetesCluster) -> Result<()>;

impl Shared {
    pub fn new(options: KubernetesOptions) -> Self {
        Self { options, cluster: Mutex::default() }
    }

    /// The cluster; that it does not come up is found out once.
    pub fn get(&self) -> Result<Arc<KubernetesCluster>> {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = cluster.get_or_insert_with(|| {
            let started = KubernetesCluster::start(&self.options);
            started.map(Arc::new).map_err(|error| format!("{error:#}"))
        });
        cluster.clone().map_err(|error| anyhow!("the cluster did not come up: {error}"))
    }

    /// Makes a test of each function.
    pub fn trials<const N: usize>(self: &Arc<Self>, tests: [(&str, Test); N]) -> Vec<Trial> {
        let trial = |(name, test): (&str, Test)| {
            let shared = self.clone();
            Trial::test(name, move || {
                let cluster = shared.get().map_err(failed)?;
                test(&cluster).map_err(failed)
            })
        };
        tests.into_iter().map(trial).collect()
    }
}

/// An error with its causes, as a test's.
pub fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
