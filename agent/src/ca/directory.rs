//! The files of a trust root: `root.pem`, `root.key` and, while one of them is made, `lock`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::KeyPair;

use super::{CaError, material, new_key, root};

const CERTIFICATE: &str = "root.pem";
const KEY: &str = "root.key";
const LOCK: &str = "lock";

/// The root's certificate (PEM) and key.
pub(super) fn open(directory: &Path, trust_domain: &str) -> Result<(String, KeyPair), CaError> {
    fs::create_dir_all(directory).map_err(io("create", directory))?;
    let lock_path = directory.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io("open", &lock_path))?;
    lock.lock().map_err(io("lock", &lock_path))?;

    let key_path = directory.join(KEY);
    let certificate_path = directory.join(CERTIFICATE);
    let key = match read(&key_path)? {
        Some(pem) => {
            check_exposure(&key_path)?;
            KeyPair::from_pem(&pem).map_err(|error| CaError::Malformed {
                path: key_path.clone(),
                reason: format!("no private key in PEM: {error}"),
            })?
        }
        None if certificate_path.exists() => {
            return Err(CaError::KeyMissing { certificate: certificate_path, key: key_path });
        }
        None => {
            let key = new_key(&format!("trust domain {trust_domain}"))?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            key
        }
    };
    let certificate = match read(&certificate_path)? {
        Some(pem) => {
            check_certificate(&certificate_path, &pem, &key, trust_domain)?;
            pem
        }
        // Also where an agent died between the two files: the key is there already.
        None => {
            let pem = root(trust_domain, &key, SystemTime::now())?;
            write(&certificate_path, &pem, 0o644)?;
            tracing::info!(path = %certificate_path.display(), trust_domain, "made a trust root");
            pem
        }
    };
    Ok((certificate, key))
}

fn check_exposure(path: &Path) -> Result<(), CaError> {
    let mode = fs::metadata(path).map_err(io("stat", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CaError::KeyExposed { path: path.to_owned(), mode });
    }
    Ok(())
}

fn check_certificate(
    path: &Path,
    pem: &str,
    key: &KeyPair,
    trust_domain: &str,
) -> Result<(), CaError> {
    let malformed = |reason: String| CaError::Malformed { path: path.to_owned(), reason };
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|error| malformed(format!("no certificate in PEM: {error}")))?;
    let certificate =
        block.parse_x509().map_err(|error| malformed(format!("no certificate: {error}")))?;
    if certificate.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(malformed(format!("is not the certificate of the key in {KEY} beside it")));
    }
    if !certificate.is_ca() {
        return Err(malformed("is not the certificate of an authority".to_owned()));
    }
    if !certificate.validity().is_valid() {
        return Err(malformed(format!(
            "is valid only from {} to {}",
            certificate.validity().not_before,
            certificate.validity().not_after
        )));
    }
    match material::trust_domain(&certificate) {
        Some(found) if found != trust_domain => Err(CaError::TrustDomain {
            path: path.to_owned(),
            found: found.to_owned(),
            wanted: trust_domain.to_owned(),
        }),
        // A root that somebody else made may not name a trust domain.
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// Writes a whole file or none.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension("new");
    // What a crash left there may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io("remove", &temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(io("create", &temporary))?;
    file.write_all(text.as_bytes()).map_err(io("write", &temporary))?;
    file.sync_all().map_err(io("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io("rename to", path))?;
    if let Some(directory) = path.parent() {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io("sync", directory))?;
    }
    Ok(())
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path: PathBuf = path.to_owned();
    move |source| CaError::Io { action, path, source }
}
