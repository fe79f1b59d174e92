//! The cluster that the tests have in common.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use libtest_mimic::{Failed, Trial};
use weft_tests::image::{Compression, write_archive};
use weft_tests::kubernetes::weft_image;
use weft_tests::{KubernetesCluster, KubernetesOptions, binary};

/// Weft's image, as the chart asks for it.
pub const WEFT_IMAGE: &str = concat!("weft.dev/weft:", env!("CARGO_PKG_VERSION"));

/// A cluster that the first test to need it starts.
pub struct Shared {
    options: KubernetesOptions,
    cluster: Once<Arc<KubernetesCluster>>,
    weft: Once<()>,
}

/// A test on the cluster.
pub type Test = fn(&KubernetesCluster) -> Result<()>;

impl Shared {
    pub fn new(options: KubernetesOptions) -> Self {
        Self { options, cluster: Once::default(), weft: Once::default() }
    }

    fn cluster(&self) -> Result<Arc<KubernetesCluster>> {
        let start = || KubernetesCluster::start(&self.options).map(Arc::new);
        self.cluster.get(start).context("the cluster did not come up")
    }

    fn cluster_with_weft(&self) -> Result<Arc<KubernetesCluster>> {
        let cluster = self.cluster()?;
        let install = || {
            import_weft(&cluster)?;
            cluster.install_weft(WEFT_IMAGE, &["compat.crds=true"])
        };
        self.weft.get(install).context("Weft was not installed")?;
        Ok(cluster)
    }

    /// Makes a test of each function.
    pub fn trials<const N: usize>(self: &Arc<Self>, tests: [(&str, Test); N]) -> Vec<Trial> {
        self.trials_on(Self::cluster, tests)
    }

    /// The same, with Weft installed.
    pub fn trials_with_weft<const N: usize>(
        self: &Arc<Self>,
        tests: [(&str, Test); N],
    ) -> Vec<Trial> {
        self.trials_on(Self::cluster_with_weft, tests)
    }

    fn trials_on<const N: usize>(
        self: &Arc<Self>,
        cluster: fn(&Self) -> Result<Arc<KubernetesCluster>>,
        tests: [(&str, Test); N],
    ) -> Vec<Trial> {
        let trial = |(name, test): (&str, Test)| {
            let shared = self.clone();
            Trial::test(name, move || {
                let cluster = cluster(&shared).map_err(failed)?;
                test(&cluster).map_err(failed)
            })
        };
        tests.into_iter().map(trial).collect()
    }
}

/// What is made once; that it cannot be is found out once, too.
struct Once<T>(Mutex<Option<Result<T, String>>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Once<T> {
    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let made = made.get_or_insert_with(|| make().map_err(|error| format!("{error:#}")));
        made.clone().map_err(|error| anyhow!(error))
    }
}

/// Brings Weft's image to every node.
pub fn import_weft(cluster: &KubernetesCluster) -> Result<()> {
    let archive = cluster.directory().join("weft.tar");
    let weft = binary("weft")?;
    let binaries = weft.parent().context("weft is in no directory")?;
    write_archive(&archive, &[weft_image(WEFT_IMAGE, binaries)?], Compression::None)?;
    cluster.import_image(&archive)?;
    Ok(std::fs::remove_file(&archive)?)
}

/// An error with its causes, as a test's.
pub fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}
