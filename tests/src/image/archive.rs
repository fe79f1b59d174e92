//! Archives of images.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use flate2::GzBuilder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

use super::Image;
use super::content::append_bytes;

/// How layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are: quick to write and to unpack, for tests.
    None,
    /// By gzip, which every engine reads.
    Gzip,
}

/// Blobs by their digest.
type Blobs = BTreeMap<String, Vec<u8>>;

/// Writes images into one archive.
///
/// # Errors
/// A file of an image cannot be read, or the archive cannot be written.
pub fn write_archive(path: &Path, images: &[Image], compression: Compression) -> Result<()> {
    let mut blobs = Blobs::new();
    let (mut manifests, mut docker) = (Vec::new(), Vec::new());
    for image in images {
        let (descriptor, listed) = add_image(image, compression, &mut blobs)?;
        manifests.push(descriptor);
        docker.push(listed);
    }
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut archive = Builder::new(BufWriter::new(file));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(0);
        append_bytes(&mut archive, &mut header, name, bytes)
    };
    for (digest, blob) in &blobs {
        add(&blob_path(digest), blob)?;
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    add("index.json", &serde_json::to_vec(&index)?)?;
    add("manifest.json", &serde_json::to_vec(&docker)?)?;
    add("oci-layout", &serde_json::to_vec(&json!({ "imageLayoutVersion": "1.0.0" }))?)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

/// Adds an image's blobs. Returns its descriptor for the index, and its entry for Docker's list.
fn add_image(image: &Image, compression: Compression, blobs: &mut Blobs) -> Result<(Value, Value)> {
    let mut layer = Builder::new(Vec::new());
    for (path, entry) in &image.entries {
        entry.append(path, &mut layer)?;
    }
    let plain = layer.into_inner()?;
    let unpacked = digest(&plain);
    let (stored, media_type) = match compression {
        Compression::None => (plain, "application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => (gzip(&plain)?, "application/vnd.oci.image.layer.v1.tar+gzip"),
    };
    let layer = add_blob(stored, media_type, blobs);

    let mut process = json!({
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "Entrypoint": image.entrypoint,
        "Labels": image.labels,
        "WorkingDir": "/",
    });
    if let Some(user) = &image.user {
        process["User"] = json!(user);
    }
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": process,
        "rootfs": { "type": "layers", "diff_ids": [unpacked] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "weft" }],
    });
    let media_type = "application/vnd.oci.image.config.v1+json";
    let config = add_blob(serde_json::to_vec(&config)?, media_type, blobs);

    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer],
    });
    let mut descriptor = add_blob(serde_json::to_vec(&manifest)?, media_type, blobs);
    let tag = image.reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    descriptor["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    descriptor["annotations"] = json!({
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": tag,
    });
    let path_of = |descriptor: &Value| descriptor["digest"].as_str().map(blob_path);
    let docker = json!({
        "Config": path_of(&config),
        "RepoTags": [image.reference],
        "Layers": [path_of(&layer)],
    });
    Ok((descriptor, docker))
}

/// Adds a blob, and returns its descriptor.
fn add_blob(bytes: Vec<u8>, media_type: &str, blobs: &mut Blobs) -> Value {
    let (digest, size) = (digest(&bytes), bytes.len());
    blobs.insert(digest.clone(), bytes);
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The header has no time and no name, so that the same bytes give the same blob.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// As Go, and so the image specification, calls this machine's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
