//! Container images, written without a container engine.
//!
//! An archive is an OCI image layout (image-spec, "Image Layout") with Docker's `manifest.json`
//! beside it, so that `ctr image import`, `docker load` and `kind load image-archive` take it.
//! The same files give the same bytes: entries are sorted, and carry no time and no owner of the
//! machine that wrote them.

mod archive;
mod content;
mod libraries;

pub use archive::{Compression, write_archive};

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use content::{Content, Entry};

/// An image that is to be written: one layer, and how its process starts.
#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    user: Option<String>,
    labels: BTreeMap<String, String>,
}

impl Image {
    /// An empty image with a full name, such as `weft.dev/weft:0.1.0`.
    pub fn new(reference: impl Into<String>) -> Self {
        let image = Self {
            reference: reference.into(),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            user: None,
            labels: BTreeMap::new(),
        };
        image.directory("/tmp", 0o1777)
    }

    /// Its full name.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Adds a directory.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, Entry { content: Content::Directory, mode })
    }

    /// Adds a file with this text.
    pub fn text(self, path: &str, text: impl Into<String>) -> Self {
        let content = Content::Bytes(text.into().into_bytes());
        self.entry(path, Entry { content, mode: 0o644 })
    }

    /// Adds a script that can be run.
    pub fn script(self, path: &str, text: impl Into<String>) -> Self {
        let content = Content::Bytes(text.into().into_bytes());
        self.entry(path, Entry { content, mode: 0o755 })
    }

    /// Adds a file of this machine.
    pub fn file(self, path: &str, source: impl Into<PathBuf>, mode: u32) -> Self {
        self.entry(path, Entry { content: Content::File(source.into()), mode })
    }

    /// Adds a symbolic link.
    pub fn link(self, path: &str, target: impl Into<PathBuf>) -> Self {
        self.entry(path, Entry { content: Content::Link(target.into()), mode: 0o777 })
    }

    /// Adds a program of this machine with the shared libraries that it needs, where it looks for
    /// them.
    ///
    /// # Errors
    /// The program cannot be read, or a library is not installed.
    pub fn program(mut self, path: &str, source: &Path) -> Result<Self> {
        for library in libraries::of(source)? {
            // Links of this machine, such as /lib -> usr/lib, do not exist in the image.
            let file = fs::canonicalize(&library)
                .with_context(|| format!("{} needs {}", source.display(), library.display()))?;
            self = self.file(&library.to_string_lossy(), file, 0o755);
        }
        Ok(self.file(path, source, 0o755))
    }

    /// The program that it runs, with arguments.
    pub fn entrypoint(self, words: &[&str]) -> Self {
        Self { entrypoint: words.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// As whom it runs unless the pod says otherwise, as `65532:65532`.
    pub fn user(self, user: impl Into<String>) -> Self {
        Self { user: Some(user.into()), ..self }
    }

    /// Adds a label to its configuration, such as `org.opencontainers.image.version`.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    fn entry(mut self, path: &str, entry: Entry) -> Self {
        let path = Path::new(path.trim_start_matches('/'));
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let directory = Entry { content: Content::Directory, mode: 0o755 };
            self.entries.entry(parent.to_path_buf()).or_insert(directory);
        }
        self.entries.insert(path.to_path_buf(), entry);
        self
    }
}

#[cfg(test)]
mod tests;
