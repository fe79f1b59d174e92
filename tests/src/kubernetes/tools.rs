//! Kubernetes' own programs, built from their Go modules by `cargo xtask`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// One of the Go modules below `tests/kubernetes/`, whose `tool` lines name programs.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// Its directory's name.
    pub name: &'static str,
    /// The programs that it builds.
    pub programs: &'static [&'static str],
    /// What is passed to `go build`, beside the programs.
    pub arguments: &'static [&'static str],
    /// Its programs need a C compiler.
    pub cgo: bool,
}

/// kubectl, Helm and client-go look for the server's version, which Kubernetes' own build sets.
const VERSION: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36 \
    -X k8s.io/component-base/version.gitTreeState=clean";
const PLAIN: &[&str] = &["-trimpath", "-ldflags", "-s -w"];

/// Everything that a Kubernetes consists of here; its control plane first.
pub const GO_MODULES: [GoModule; 6] = [
    GoModule {
        name: "control-plane",
        programs: &[
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        ],
        arguments: &["-trimpath", "-ldflags", VERSION],
        cgo: false,
    },
    GoModule {
        name: "node",
        programs: &[
            "bridge",
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "host-local",
            "loopback",
            "portmap",
            "ptp",
        ],
        arguments: PLAIN,
        cgo: false,
    },
    GoModule {
        name: "runc",
        programs: &["runc"],
        arguments: &["-trimpath", "-ldflags", "-s -w", "-tags", "seccomp"],
        cgo: true,
    },
    GoModule { name: "coredns", programs: &["coredns"], arguments: PLAIN, cgo: false },
    GoModule { name: "helm", programs: &["helm"], arguments: PLAIN, cgo: false },
    GoModule { name: "images", programs: &["crane"], arguments: PLAIN, cgo: false },
];

impl GoModule {
    /// Where its `go.mod` is.
    pub fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(self.name)
    }

    /// Where its programs are, once they are built. What is built anew when a version changes
    /// has a directory of its own, so that clones and branches share what they have in common.
    ///
    /// # Errors
    /// Its `go.mod` cannot be read, or no directory for caches is known.
    pub fn directory(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        for file in ["go.mod", "go.sum"] {
            let path = self.source().join(file);
            hash.update(fs::read(&path).with_context(|| path.display().to_string())?);
        }
        hash.update(format!("{:?}{}{}", self.arguments, self.cgo, env::consts::ARCH));
        let digest = hash.finalize();
        let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(cache()?.join(format!("{}-{short}", self.name)))
    }

    /// Whether all of its programs are there.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn is_built(&self) -> Result<bool> {
        let directory = self.directory()?;
        Ok(self.programs.iter().all(|program| directory.join(program).is_file()))
    }
}

/// The path of one of Kubernetes' programs, such as `kubectl`.
///
/// # Errors
/// It is not built yet, or there is none of that name.
pub fn kubernetes_program(name: &str) -> Result<PathBuf> {
    let module = GO_MODULES.iter().find(|module| module.programs.contains(&name));
    let module = module.with_context(|| format!("no Go module here builds a program {name}"))?;
    let path = module.directory()?.join(name);
    ensure!(
        path.is_file(),
        "{} is not there: build Kubernetes with `cargo xtask kubernetes`",
        path.display()
    );
    Ok(path)
}

/// Beside the target directories of all clones: building takes ten minutes.
fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.filter(|path| path.is_absolute()).or_else(home);
    let cache = cache.context("neither XDG_CACHE_HOME nor HOME says where caches are")?;
    Ok(cache.join("weft/kubernetes"))
}
