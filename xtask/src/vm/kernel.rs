use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::repository::target;
use crate::steps::Steps;

/// A Debian kernel, unpacked and not installed.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The kernel's image.
    pub image: PathBuf,
    /// Its folder of modules.
    modules: PathBuf,
}

impl Kernel {
    /// Downloads the package, or what the meta-package stands for, unless it is there already.
    pub fn fetch(steps: &mut Steps, package: &str) -> Result<Self> {
        let package = resolve(package)?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let folder = target().join("xtask/vm/kernels");
        let tree = folder.join(&package);
        let image = tree.join("boot").join(format!("vmlinuz-{release}"));
        let modules = ["lib/modules", "usr/lib/modules"].map(|below| tree.join(below));
        if !image.exists() {
            fs::create_dir_all(&folder)?;
            let mut download = Command::new("apt-get");
            download.current_dir(&folder).args(["download", "--quiet", &package]);
            steps.run(&format!("download {package}"), &mut download)?;
            let archive = downloaded(&folder, &package)?;
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").args([&archive, &tree]);
            steps.run(&format!("unpack {package}"), &mut unpack)?;
            fs::remove_file(archive)?;
            let mut depmod = Command::new("/sbin/depmod");
            depmod.arg("-b").arg(&tree).arg(&release);
            steps.run(&format!("dependencies of the modules of {release}"), &mut depmod)?;
        }
        ensure!(image.exists(), "{package} has no {}", image.display());
        let modules = modules
            .into_iter()
            .map(|folder| folder.join(&release))
            .find(|folder| folder.join("modules.dep").exists())
            .with_context(|| format!("{package} has no modules"))?;
        Ok(Self { release, image, modules })
    }

    /// Files of the modules, those that others depend on first. Modules that this kernel has
    /// built in, or does not have, are left out.
    pub fn modules(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let text = fs::read_to_string(self.modules.join("modules.dep"))?;
        let mut by_name = HashMap::new();
        for line in text.lines() {
            let Some((file, dependencies)) = line.split_once(':') else { continue };
            let dependencies: Vec<&str> = dependencies.split_whitespace().collect();
            by_name.insert(module_name(file), (file, dependencies));
        }
        let mut files: Vec<&str> = Vec::new();
        for name in names {
            let Some((file, dependencies)) = by_name.get(name.as_str()) else { continue };
            // modules.dep lists all that is needed, the deepest last.
            for file in dependencies.iter().rev().chain([file]) {
                if !files.contains(file) {
                    files.push(file);
                }
            }
        }
        Ok(files.into_iter().map(|file| self.modules.join(file)).collect())
    }
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// The newest kernel that a meta-package depends on, or the package itself.
fn resolve(package: &str) -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", package]).output()?;
    ensure!(
        output.status.success(),
        "apt knows no package {package}: run `apt-get update`, or see vm-tests/suite.yaml"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let dependency = text.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        name.starts_with("linux-image-").then(|| name.to_owned())
    });
    Ok(dependency.unwrap_or_else(|| package.to_owned()))
}

fn downloaded(folder: &Path, package: &str) -> Result<PathBuf> {
    let prefix = format!("{package}_");
    fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(&prefix) && name.ends_with(".deb")
        })
        .with_context(|| format!("apt-get downloaded no {prefix}*.deb"))
}
