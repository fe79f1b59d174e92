use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::repository::{find_command, root};

/// The machine's file system, as a folder that becomes an initramfs.
pub struct Image {
    folder: PathBuf,
    archive: PathBuf,
}

impl Image {
    /// An image with busybox and our first process.
    pub fn new(at: PathBuf) -> Result<Self> {
        let folder = at.join("files");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        for name in ["bin", "etc", "modules", "usr/bin", "usr/sbin", "lib64"] {
            fs::create_dir_all(folder.join(name))?;
        }
        symlink("usr/sbin", folder.join("sbin"))?;
        fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(folder.join("etc/group"), "root:x:0:\n")?;
        let busybox = find_command("busybox").context("busybox-static is not installed")?;
        fs::copy(busybox, folder.join("bin/busybox"))?;
        symlink("busybox", folder.join("bin/sh"))?;
        fs::copy(root().join("vm-tests/init"), folder.join("init"))?;
        Ok(Self { folder, archive: at.join("initramfs.cpio") })
    }

    /// Adds modules, numbered in the order in which they must be loaded.
    pub fn add_kernel_modules(&mut self, kernel: &Kernel, names: &[String]) -> Result<()> {
        for (number, file) in kernel.modules(names)?.iter().enumerate() {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let plain = name.trim_end_matches(".xz");
            let to = self.folder.join("modules").join(format!("{number:02}-{plain}"));
            if plain == name {
                fs::copy(file, to)?;
                continue;
            }
            // Not every kernel of Debian's can unpack modules by itself.
            let output = Command::new("xz").args(["-dc"]).arg(file).output().context("xz")?;
            ensure!(output.status.success(), "xz cannot unpack {}", file.display());
            fs::write(to, output.stdout)?;
        }
        Ok(())
    }

    /// Adds a command of this machine, if it has it.
    pub fn add_command(&mut self, name: &str) -> Result<()> {
        let file = find_command(name).with_context(|| format!("{name} is not installed"))?;
        self.add_executable(&file.canonicalize()?)?;
        let link = self.folder.join("usr/bin").join(name);
        if !link.exists() {
            symlink(file.canonicalize()?, link)?;
        }
        Ok(())
    }

    /// Adds an executable at its own path, without its debug information, and the libraries that
    /// it needs.
    pub fn add_executable(&mut self, file: &Path) -> Result<()> {
        let to = self.place(file)?;
        let stripped = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .args([&to, &file.to_path_buf()])
            .status();
        if !stripped.is_ok_and(|status| status.success()) {
            fs::copy(file, &to)?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
        let name = file.file_name().context("an executable has a name")?;
        let link = self.folder.join("usr/bin").join(name);
        if !link.exists() && link != to {
            symlink(file, link)?;
        }
        self.add_libraries(file)
    }

    /// What our first process runs.
    pub fn add_suite(&mut self, script: &str) -> Result<()> {
        Ok(fs::write(self.folder.join("suite"), script)?)
    }

    /// Packs it.
    pub fn pack(&self) -> Result<PathBuf> {
        let files = Command::new("find").arg(".").current_dir(&self.folder).output()?;
        ensure!(files.status.success(), "cannot list {}", self.folder.display());
        let mut cpio = Command::new("cpio")
            .args(["--create", "--quiet", "--format=newc", "--owner=0:0"])
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&self.archive)?)
            .spawn()
            .context("cpio is not installed")?;
        if let Some(mut input) = cpio.stdin.take() {
            input.write_all(&files.stdout)?;
        }
        ensure!(cpio.wait()?.success(), "cpio failed");
        Ok(self.archive.clone())
    }

    fn add_libraries(&mut self, file: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(file).output().context("ldd")?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let library = line.split_whitespace().find(|word| word.starts_with('/'));
            let Some(library) = library.map(Path::new) else { continue };
            let to = self.place(library)?;
            if !to.exists() {
                fs::copy(library, to)?;
            }
        }
        Ok(())
    }

    /// Where a file of the host goes, its folder made.
    fn place(&self, file: &Path) -> Result<PathBuf> {
        let to = self.folder.join(file.strip_prefix("/").unwrap_or(file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(to)
    }
}
