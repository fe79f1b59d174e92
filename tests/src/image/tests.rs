use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Compression, Image, write_archive};

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("weft-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn image() -> Image {
    Image::new("weft.test/example:1")
        .text("/etc/passwd", "root:x:0:0:root:/:\n")
        .script("/usr/bin/run", "#!/bin/sh\n")
        .link("/bin", "usr/bin")
        .entrypoint(&["/usr/bin/run"])
}

fn names(archive: &Path) -> Result<Vec<String>> {
    let mut archive = tar::Archive::new(fs::File::open(archive)?);
    let entries = archive.entries()?;
    entries.map(|entry| Ok(entry?.path()?.display().to_string())).collect()
}

#[test]
fn the_same_files_give_the_same_bytes() -> Result<()> {
    let scratch = Scratch::new("same-bytes")?;
    let [one, two] = ["one", "two"].map(|name| scratch.0.join(name));
    write_archive(&one, &[image()], Compression::Gzip)?;
    write_archive(&two, &[image()], Compression::Gzip)?;
    assert_eq!(fs::read(&one)?, fs::read(&two)?);
    Ok(())
}

#[test]
fn images_share_what_they_have_in_common() -> Result<()> {
    let scratch = Scratch::new("common")?;
    let path = scratch.0.join("images.tar");
    let other = Image { reference: "weft.test/other:1".into(), ..image() }.entrypoint(&["/other"]);
    write_archive(&path, &[image(), other], Compression::None)?;
    let names = names(&path)?;
    // Two manifests, two configurations, one layer.
    assert_eq!(names.iter().filter(|name| name.starts_with("blobs/")).count(), 5, "{names:?}");
    for part in ["index.json", "manifest.json", "oci-layout"] {
        assert!(names.iter().any(|name| name == part), "{part} is missing in {names:?}");
    }
    Ok(())
}

#[test]
fn directories_come_before_what_lies_in_them() -> Result<()> {
    let image = image().directory("/usr", 0o700);
    let paths: Vec<_> = image.entries.keys().map(|path| path.display().to_string()).collect();
    assert_eq!(paths, ["bin", "etc", "etc/passwd", "tmp", "usr", "usr/bin", "usr/bin/run"]);
    Ok(())
}
