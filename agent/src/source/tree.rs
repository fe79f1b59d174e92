//! The files below a directory, read again when they have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_model::dialect::{self, Finding, Severity};
use weft_model::mesh::{Location, Mesh, Settings};

use super::Manifests;

/// A file that is larger is no manifest.
const LARGEST: u64 = 64 << 20;

/// Whether a file is read, by its name: `*.yaml`, `*.yml`, `*.json`, and not hidden.
pub fn is_manifest(path: &Path) -> bool {
    !is_hidden(path)
        && path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

/// Hidden files are editors' own, and a ConfigMap's volume keeps its versions in hidden folders.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Changes when a file's content may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The manifests below directories (or single files), with the last good version of each.
#[derive(Debug)]
pub struct Tree {
    roots: Vec<PathBuf>,
    settings: Settings,
    read: BTreeMap<PathBuf, (Stamp, Vec<u8>)>,
    manifests: Manifests,
}

impl Tree {
    /// Below `roots`; nothing has been read yet.
    pub fn new(roots: Vec<PathBuf>, settings: Settings) -> Self {
        Self { roots, settings, read: BTreeMap::new(), manifests: Manifests::default() }
    }

    /// The mesh that the documents in force say.
    pub fn mesh(&self) -> Mesh {
        self.manifests.settled(self.settings.clone()).0
    }

    /// The same, with all that is to be said about the documents, by place.
    pub fn mesh_and_findings(&self) -> (Mesh, Vec<Finding>) {
        let (mesh, left_out) = self.manifests.settled(self.settings.clone());
        let mut findings = self.manifests.findings();
        findings.extend(left_out);
        findings.sort_by(|a, b| a.location.cmp(&b.location).then_with(|| a.field.cmp(&b.field)));
        (mesh, findings)
    }

    /// The documents.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Looks at every file, and reads those that have changed. Returns whether any had.
    ///
    /// # Errors
    /// Where the directory cannot be listed; everything stays as it was.
    pub fn scan(&mut self) -> io::Result<bool> {
        let found = self.list()?;
        let gone: Vec<PathBuf> =
            self.read.keys().filter(|path| !found.contains(*path)).cloned().collect();
        let mut changed = !gone.is_empty();
        for path in gone {
            self.forget(&path);
        }
        for path in found {
            changed |= self.read(&path, false);
        }
        Ok(changed)
    }

    /// Reads one file again, whatever its times say. Returns whether it had changed.
    pub fn reread(&mut self, path: &Path) -> bool {
        self.read(path, true)
    }

    fn read(&mut self, path: &Path, distrust: bool) -> bool {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.forget(path),
            Err(error) => return self.unreadable(path, &error.to_string()),
        };
        if !metadata.is_file() {
            return self.forget(path);
        }
        let stamp = Stamp::of(&metadata);
        if !distrust && self.read.get(path).is_some_and(|(known, _)| *known == stamp) {
            return false;
        }
        if metadata.len() > LARGEST {
            return self.unreadable(path, &format!("is larger than {} MiB", LARGEST >> 20));
        }
        let mut content = Vec::new();
        let opened =
            fs::File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut content));
        if let Err(error) = opened {
            return self.unreadable(path, &error.to_string());
        }
        if self.read.get(path).is_some_and(|(_, known)| *known == content) {
            self.read.insert(path.to_owned(), (stamp, content));
            return false;
        }
        let Ok(text) = std::str::from_utf8(&content) else {
            let changed = self.unreadable(path, "is not UTF-8");
            self.read.insert(path.to_owned(), (stamp, content));
            return changed;
        };
        let name = name(path);
        self.manifests.replace(&name, dialect::read_yaml(&self.settings, &name, text));
        self.read.insert(path.to_owned(), (stamp, content));
        true
    }

    fn forget(&mut self, path: &Path) -> bool {
        self.manifests.remove(&name(path));
        self.read.remove(path).is_some()
    }

    fn unreadable(&mut self, path: &Path, reason: &str) -> bool {
        let name = name(path);
        let finding = Finding {
            severity: Severity::Error,
            object: None,
            field: "".into(),
            reason: format!("{reason}; what it said before stays in force"),
            location: Some(Location { file: name.clone(), line: 1 }),
        };
        self.manifests.unreadable(&name, finding);
        // It is read again as soon as it can be, whatever its times say then.
        let stamp = Stamp { device: 0, inode: 0, size: 0, modified: (0, 0), changed: (0, 0) };
        let known = self.read.insert(path.to_owned(), (stamp, Vec::new()));
        known.is_none_or(|(known, _)| known != stamp)
    }

    fn list(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        let mut folders = Vec::new();
        for root in &self.roots {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("{}: {error}", root.display()))
            };
            if fs::metadata(root).map_err(named)?.is_file() {
                found.insert(root.clone());
            } else {
                folders.push(root.clone());
            }
        }
        // By device and inode, against links that lead in circles.
        let mut seen = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            let listed = fs::metadata(&folder)
                .and_then(|metadata| Ok((metadata.dev(), metadata.ino(), fs::read_dir(&folder)?)));
            let (device, inode, entries) = match listed {
                Ok(listed) => listed,
                // Gone since its parent was listed.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && !self.roots.contains(&folder) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !seen.insert((device, inode)) {
                continue;
            }
            for entry in entries {
                let path = entry?.path();
                if is_hidden(&path) {
                    continue;
                }
                match fs::metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => folders.push(path),
                    Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                        found.insert(path);
                    }
                    // What cannot be looked at is not gone: reading it will say why.
                    Err(error) if error.kind() != io::ErrorKind::NotFound && is_manifest(&path) => {
                        found.insert(path);
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}
