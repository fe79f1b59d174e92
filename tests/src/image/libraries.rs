//! The shared libraries of a program.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Paths of the loader and of all libraries that the loader would map, as it finds them itself.
/// None if the program is linked statically.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if stderr.contains("not a dynamic executable") || stdout.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!("ldd {}: {stdout}{stderr}", program.display());
    }
    stdout.lines().filter_map(|line| library(line).transpose()).collect()
}

/// Reads a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x...)`, or the loader's path alone. What
/// has no path, as linux-vdso, comes from the kernel.
fn library(line: &str) -> Result<Option<PathBuf>> {
    let line = line.trim();
    let path = line.split_once(" => ").map_or(line, |(_, path)| path);
    if path == "not found" {
        bail!("{line}: install the library");
    }
    let path = path.split(" (").next().unwrap_or(path);
    Ok(path.starts_with('/').then(|| path.into()))
}

#[cfg(test)]
mod tests {
    use super::library;

    #[test]
    fn reads_lines_of_ldd() {
        let read = |line: &str| library(line).ok().flatten().map(|path| path.display().to_string());
        assert_eq!(
            read("\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f9759fca000)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libm.so.6")
        );
        assert_eq!(
            read("\t/lib64/ld-linux-x86-64.so.2 (0x00007f975a0e0000)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(read("\tlinux-vdso.so.1 (0x00007f975a0de000)"), None);
        assert!(library("\tlibpcre2-8.so.0 => not found").is_err());
    }
}
