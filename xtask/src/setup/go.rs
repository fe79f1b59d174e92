//! Go, which builds Kubernetes.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weft_tests::kubernetes::GO_MODULES;

use super::{install, lists_present, update_lists};
use crate::kubernetes::read;
use crate::repository::find_command;
use crate::steps::Steps;

/// What is fetched where Go is missing or too old.
const VERSION: &str = "1.26.8";
/// From this version on Go fetches by itself the Go that a module asks for.
const SWITCHES: &str = "1.21";

/// A Go that is new enough for all modules.
pub struct Go {
    program: PathBuf,
    /// Whether it has to fetch a newer one.
    switches: bool,
}

impl Go {
    /// The one that is installed if it is new enough, or can fetch what is. Otherwise a newer one
    /// is fetched as Go itself does: as the module golang.org/toolchain, by Debian's old Go.
    ///
    /// # Errors
    /// There is none, and none can be installed.
    pub fn find(steps: &mut Steps) -> Result<Self> {
        let needed = needed()?;
        let usual = ["/usr/local/go/bin/go", "/usr/lib/go/bin/go"].map(PathBuf::from);
        let installed = find_command("go").into_iter().chain(usual).filter(|go| go.is_file());
        let mut oldest = None;
        for program in installed {
            let version = version(&program)?;
            if compare(&version, &needed).is_ge() {
                return Ok(Self { program, switches: false });
            }
            if compare(&version, SWITCHES).is_ge() {
                return Ok(Self { program, switches: true });
            }
            oldest = oldest.or(Some(program));
        }
        let program = fetch(steps, oldest)?;
        Ok(Self { program, switches: false })
    }

    /// A `go` command.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        let toolchain = if self.switches { format!("go{VERSION}+auto") } else { "local".into() };
        command.env("GOTOOLCHAIN", toolchain).env_remove("GOROOT").env_remove("GOFLAGS");
        command
    }
}

/// The newest Go that a module asks for.
fn needed() -> Result<String> {
    let mut newest = String::new();
    for module in GO_MODULES {
        let path = module.source().join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let version = text.lines().find_map(|line| line.strip_prefix("go "));
        let version = version.with_context(|| format!("{} names no Go", path.display()))?;
        if compare(version, &newest).is_gt() {
            version.trim().clone_into(&mut newest);
        }
    }
    Ok(newest)
}

/// As `1.26.8`.
fn version(program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    let text = read(command.args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
    Ok(text.trim().trim_start_matches("go").to_owned())
}

/// By their numbers; what is behind them (`rc1`) is no number, and counts as 0.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u32> {
        version.split('.').map(|part| part.parse().unwrap_or_default()).collect()
    };
    numbers(one).cmp(&numbers(other))
}

fn fetch(steps: &mut Steps, old: Option<PathBuf>) -> Result<PathBuf> {
    // Beside the programs that it builds.
    let first = GO_MODULES.first().context("there are Go modules")?.directory()?;
    let directory = first.with_file_name(format!("go-{VERSION}"));
    let program = directory.join("bin/go");
    if program.is_file() {
        return Ok(program);
    }
    let old = match old {
        Some(old) => old,
        None => install_old(steps)?,
    };
    steps.say(&format!("Go {VERSION}: builds Kubernetes (fetched from Go's module proxy)"));
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{VERSION}.linux-{architecture}");
    let title = format!("fetch Go {VERSION}");
    let output =
        steps.run(&title, Command::new(old).args(["mod", "download", "-json", &module]))?;
    let answer: serde_json::Value = serde_json::from_str(&output.lines.join("\n"))?;
    let fetched = answer["Dir"].as_str().context("`go mod download` names no directory")?;
    steps.during(&format!("install Go {VERSION}"), |_| {
        let partial = directory.with_extension(std::process::id().to_string());
        copy(Path::new(fetched), &partial)?;
        if !directory.exists() {
            fs::rename(&partial, &directory)?;
        }
        Ok(())
    })?;
    ensure!(program.is_file(), "{} is not there", program.display());
    Ok(program)
}

fn install_old(steps: &mut Steps) -> Result<PathBuf> {
    steps.say("golang-go: Debian's Go, to fetch a newer one with");
    ensure!(
        find_command("apt-get").is_some() && rustix::process::geteuid().is_root(),
        "Go is not installed: install Go {VERSION} or newer (https://go.dev/dl)"
    );
    if !lists_present() {
        update_lists(steps)?;
    }
    if install(steps, &["golang-go"]).is_err() {
        update_lists(steps)?;
        install(steps, &["golang-go"])?;
    }
    find_command("go").context("golang-go brought no `go`")
}

/// Copies a tree. Modules have no executable files and cannot be written to: everything becomes
/// both.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| target.display().to_string())?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn compares_versions() {
        assert!(compare("1.26.8", "1.26").is_gt());
        assert!(compare("1.9", "1.26.0").is_lt());
        assert!(compare("1.26.0", "1.26.0").is_eq());
        assert!(compare("1.26.0", "").is_gt());
    }
}
