//! Runs the tests that face the kernel on other kernels, in QEMU.

mod image;
mod kernel;
mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use self::image::Image;
use self::kernel::Kernel;
use self::machine::Report;
use crate::artifacts;
use crate::repository::{root, target};
use crate::steps::{Output, Steps};

/// `vm-tests/suite.yaml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    kernels: Vec<KernelSpec>,
    modules: Vec<String>,
    commands: Vec<String>,
    tests: Vec<TestSpec>,
    memory_mib: u32,
    minutes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelSpec {
    name: String,
    package: String,
    /// Tests that cannot pass on it, and why.
    #[serde(default)]
    without: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TestSpec {
    #[serde(rename = "crate")]
    package: String,
    /// Name of the test binary; none: the library's own unit tests.
    #[serde(default)]
    binary: Option<String>,
    #[serde(default)]
    filter: String,
}

/// A test binary and what to run of it.
struct TestBinary {
    executable: PathBuf,
    filter: String,
}

/// Runs the suite on every kernel whose name is in `only`, or on all.
///
/// # Errors
/// When a machine does not boot, or a test fails on it.
pub fn run(steps: &mut Steps, only: &[String]) -> Result<()> {
    let file = root().join("vm-tests/suite.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let suite: Suite = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
    let tests = build_tests(steps, &suite)?;

    let mut failed = Vec::new();
    for spec in &suite.kernels {
        if !only.is_empty() && !only.contains(&spec.name) {
            continue;
        }
        let kernel = Kernel::fetch(steps, &spec.package)?;
        let mut image = Image::new(target().join("xtask/vm").join(&kernel.release))?;
        image.add_kernel_modules(&kernel, &suite.modules)?;
        for command in &suite.commands {
            image.add_command(command)?;
        }
        for program in artifacts::PROGRAMS {
            image.add_executable(&artifacts::folder().join(program))?;
        }
        for test in &tests {
            image.add_executable(&test.executable)?;
        }
        image.add_suite(&script(&tests, &spec.without))?;
        let archive =
            steps.during(&format!("file system for {}", kernel.release), |_| image.pack())?;
        let limit = Duration::from_secs(suite.minutes * 60);
        let report = machine::boot(steps, &kernel, &archive, suite.memory_mib, limit)?;
        if !print(&spec.name, &report) {
            failed.push(spec.name.clone());
        }
        for (test, reason) in &spec.without {
            println!("  left out {test}: {reason}");
        }
    }
    ensure!(failed.is_empty(), "tests failed on {}", failed.join(" and "));
    Ok(())
}

fn build_tests(steps: &mut Steps, suite: &Suite) -> Result<Vec<TestBinary>> {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    for test in &suite.tests {
        command.args(["--package", &test.package]);
    }
    let output = steps.run("build the tests for other kernels", &mut command)?;
    suite.tests.iter().map(|test| find_binary(&output, test)).collect()
}

/// Finds a test's executable among cargo's messages.
fn find_binary(output: &Output, test: &TestSpec) -> Result<TestBinary> {
    let executable = output.lines.iter().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let of_package = message["manifest_path"].as_str().is_some_and(|path| {
            let manifest = fs::read_to_string(path).unwrap_or_default();
            manifest.contains(&format!("name = \"{}\"", test.package))
        });
        let target = &message["target"];
        let wanted = match &test.binary {
            Some(name) => target["name"] == name.as_str(),
            None => target["kind"][0] == "lib",
        };
        let is_test = message["profile"]["test"] == true;
        (of_package && wanted && is_test).then_some(())?;
        message["executable"].as_str().map(PathBuf::from)
    });
    let Some(executable) = executable else {
        bail!("cargo made no test binary for {} {:?}", test.package, test.binary);
    };
    Ok(TestBinary { executable, filter: test.filter.clone() })
}

/// The shell commands that run inside of the machine: an agent of its own, which loads and
/// attaches every program and says what it found, then the tests.
fn script(tests: &[TestBinary], without: &BTreeMap<String, String>) -> String {
    let skip: String = without.keys().map(|test| format!(" --skip {test}")).collect();
    let mut text = format!(
        "export WEFT_BIN_DIR={}\n{}",
        artifacts::folder().display(),
        include_str!("../../vm-tests/agent.sh")
    );
    for test in tests {
        let name = test.executable.file_name().unwrap_or_default().to_string_lossy();
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        text.push_str(&format!(
            "echo \"weft-vm: begin tests: {name} {}\"\n{} {} --test-threads=1{skip} 2>&1\n\
             echo \"weft-vm: status $?\"\n",
            test.filter,
            test.executable.display(),
            test.filter,
        ));
    }
    text
}

/// Prints what ran on a kernel; false if something failed.
fn print(name: &str, report: &Report) -> bool {
    println!("\nkernel {name} ({})", report.release);
    for part in &report.parts {
        let mark = if part.status == Some(0) { "ok" } else { "FAILED" };
        println!("  {mark} {}", part.name);
        for line in part.shown() {
            println!("     {line}");
        }
    }
    report.complete && report.parts.iter().all(|part| part.status == Some(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "boots a machine: needs QEMU and Debian's packages"]
    fn boots_and_reports() -> Result<()> {
        let mut steps = Steps::new();
        let kernel = Kernel::fetch(&mut steps, "linux-image-cloud-amd64")?;
        let mut image = Image::new(target().join("xtask/vm/smoke"))?;
        image.add_kernel_modules(&kernel, &["veth".into(), "bridge".into()])?;
        image.add_command("ip")?;
        image.add_suite(
            "echo 'weft-vm: begin ip'\n/usr/bin/ip link add weft0 type veth peer name weft1 && /usr/bin/ip link && \
             cat /proc/mounts && ls /sys/kernel/btf\necho \"weft-vm: status $?\"\n",
        )?;
        let archive = image.pack()?;
        let limit = Duration::from_secs(120);
        let report = machine::boot(&mut steps, &kernel, &archive, 512, limit)?;
        assert!(print("smoke", &report), "the machine did not come to its end");
        assert_eq!(report.release, kernel.release);
        Ok(())
    }
}
