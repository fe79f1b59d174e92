//! What lies in a layer.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// What a path of the image is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) content: Content,
    pub(super) mode: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Directory,
    Bytes(Vec<u8>),
    /// A file of this machine.
    File(PathBuf),
    /// Where a symbolic link leads.
    Link(PathBuf),
}

impl Entry {
    /// Appends it to a layer. Owner and time are those that [`Header::new_gnu`] has: root, 1970.
    pub(super) fn append(&self, path: &PathBuf, layer: &mut Builder<impl Write>) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_mode(self.mode);
        header.set_mtime(0);
        header.set_size(0);
        let appended = match &self.content {
            Content::Directory => {
                header.set_entry_type(EntryType::Directory);
                layer.append_data(&mut header, path, std::io::empty())
            }
            Content::Bytes(bytes) => append_bytes(layer, &mut header, path, bytes),
            Content::File(source) => {
                let file = File::open(source).with_context(|| source.display().to_string())?;
                header.set_size(file.metadata()?.len());
                layer.append_data(&mut header, path, file)
            }
            Content::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                layer.append_link(&mut header, path, target)
            }
        };
        appended.with_context(|| format!("cannot add {} to the layer", path.display()))
    }
}

/// Appends a file to an archive.
pub(super) fn append_bytes(
    archive: &mut Builder<impl Write>,
    header: &mut Header,
    path: impl AsRef<std::path::Path>,
    bytes: &[u8],
) -> std::io::Result<()> {
    header.set_size(bytes.len() as u64);
    archive.append_data(header, path, bytes)
}
