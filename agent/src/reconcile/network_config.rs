//! The network's configuration, kept from the container runtime until a policy is in force.
//!
//! A kubelet starts the pods of its node as soon as it runs itself, the agent's among them: after a
//! boot, which leaves nothing in the kernel, they would talk before anything judges them. While the
//! runtime has no configuration of a network, a kubelet starts only pods on the node's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What runtimes read (libcni's `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// They may hold credentials.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The files that CNI plugins' installers write, and the directory where the runtime looks for
/// them, below `/run`, which is empty after a boot.
#[derive(Debug)]
pub struct NetworkConfig {
    source: PathBuf,
    directory: PathBuf,
}

type Files = BTreeMap<OsString, Vec<u8>>;

impl NetworkConfig {
    /// From `source` to `directory`, which is nobody else's.
    pub fn new(source: PathBuf, directory: PathBuf) -> Self {
        Self { source, directory }
    }

    /// Makes the directory's files those of the source. Returns whether any was another.
    ///
    /// # Errors
    /// Where a file cannot be read or written: what is there stays.
    pub fn publish(&self) -> Result<bool, String> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| format!("{path}: {error}")
        };
        let wanted = files(&self.source).map_err(failed(&self.source))?;
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(DIRECTORY_MODE);
        builder.create(&self.directory).map_err(failed(&self.directory))?;
        let there = files(&self.directory).map_err(failed(&self.directory))?;
        for (name, content) in
            wanted.iter().filter(|(name, content)| there.get(*name) != Some(content))
        {
            let path = self.directory.join(name);
            write(&path, content).map_err(failed(&path))?;
        }
        for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
            let path = self.directory.join(name);
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        Ok(there != wanted)
    }
}

/// A directory's files of configuration.
fn files(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let known = extension.is_some_and(|extension| EXTENSIONS.contains(&extension));
        if let Some(name) = path.file_name().filter(|_| known) {
            match fs::read(&path) {
                Ok(content) => drop(files.insert(name.to_owned(), content)),
                // It has gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(files)
}

/// Under another name first: the runtime reads a file as soon as it is there.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut early = path.to_owned().into_os_string();
    early.push(".new");
    let mut options = fs::OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(FILE_MODE);
    options.open(&early)?.write_all(content)?;
    fs::rename(&early, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_has_what_the_installers_write() {
        let directory = tempfile::tempdir().unwrap();
        let (source, published) = (directory.path().join("etc"), directory.path().join("run/cni"));
        let config = NetworkConfig::new(source.clone(), published.clone());
        let error = config.publish().unwrap_err();
        assert!(error.contains("etc"), "{error}");
        assert!(!published.exists());

        fs::create_dir(&source).unwrap();
        fs::write(source.join("10-a.conflist"), "a").unwrap();
        fs::write(source.join("20-b.conf"), "b").unwrap();
        fs::write(source.join("a.kubeconfig"), "token").unwrap();
        assert_eq!(config.publish(), Ok(true));
        assert_eq!(config.publish(), Ok(false));
        let names: Vec<_> = files(&published).unwrap().into_keys().collect();
        assert_eq!(names, ["10-a.conflist", "20-b.conf"]);
        assert!(!published.join("a.kubeconfig").exists());

        fs::write(source.join("10-a.conflist"), "A").unwrap();
        fs::remove_file(source.join("20-b.conf")).unwrap();
        assert_eq!(config.publish(), Ok(true));
        assert_eq!(files(&published).unwrap(), files(&source).unwrap());
        assert_eq!(fs::read_dir(&published).unwrap().count(), 1);
    }
}
