//! Debian packages, what for, and how to see that they are there where dpkg is not.

/// What a package is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To build the eBPF programs, the agent and the proxy.
    Build,
    /// To run a mesh of namespaces on this machine.
    Run,
    /// To check and lint.
    Check,
    /// To measure.
    Measure,
    /// To build Kubernetes.
    Kubernetes,
    /// To run the tests on other kernels.
    Vm,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Build, Self::Run, Self::Check, Self::Measure, Self::Kubernetes, Self::Vm];
}

/// A Debian package.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// Why it is installed, for the user to read.
    pub why: &'static str,
    /// When it is.
    pub purpose: Purpose,
    /// What is looked for where there is no dpkg: commands, or absolute paths.
    pub files: &'static [&'static str],
    /// Whether it belongs to Debian's own compiler for eBPF.
    pub debian_toolchain: bool,
}

const fn package(
    name: &'static str,
    purpose: Purpose,
    files: &'static [&'static str],
    why: &'static str,
) -> Package {
    Package { name, why, purpose, files, debian_toolchain: false }
}

const fn toolchain(
    name: &'static str,
    files: &'static [&'static str],
    why: &'static str,
) -> Package {
    Package { name, why, purpose: Purpose::Build, files, debian_toolchain: true }
}

/// Everything that `cargo xtask setup` installs.
#[rustfmt::skip]
pub const PACKAGES: &[Package] = &[
    toolchain("rustc-web", &[], "Debian's rustc, which has a prebuilt core for eBPF"),
    toolchain("cargo-web", &[], "the cargo of that rustc"),
    toolchain("libstd-rust-web-dev-bpf", &[], "core for the target bpfel-unknown-none"),
    toolchain("rust-web-llvm", &[], "the LLVM of that rustc"),
    toolchain("llvm-22-dev", &[], "LLVM for bpf-linker, of the same version as rustc's"),
    toolchain("libpolly-22-dev", &[], "which LLVM's libraries refer to"),
    toolchain("libzstd-dev", &[], "which LLVM's libraries refer to"),
    toolchain("zlib1g-dev", &[], "which LLVM's libraries refer to"),
    toolchain("libxml2-dev", &[], "which LLVM's libraries refer to"),
    package("build-essential", Purpose::Build, &["cc", "c++", "make"], "C compiler for aws-lc, and the linker"),
    package("cmake", Purpose::Build, &["cmake"], "aws-lc's build"),
    package("iproute2", Purpose::Run, &["ip", "ss", "tc"], "namespaces, links and routes of the test cluster"),
    package("nftables", Purpose::Run, &["nft"], "packet filters in tests"),
    package("curl", Purpose::Run, &["curl"], "HTTP clients of the shop"),
    package("nginx-light", Purpose::Run, &["nginx"], "HTTP servers of the shop (its service is not started)"),
    package("jq", Purpose::Run, &["jq"], "to look into JSON by hand"),
    package("bpftool", Purpose::Run, &["bpftool"], "to look at programs and maps by hand"),
    package("busybox-static", Purpose::Run, &["busybox"], "user space of pods, and of machines with other kernels"),
    package("rust-web-clippy", Purpose::Check, &[], "lints for the eBPF programs"),
    package("wrk", Purpose::Measure, &["wrk"], "HTTP load"),
    package("iperf3", Purpose::Measure, &["iperf3"], "throughput"),
    package("libseccomp-dev", Purpose::Kubernetes, &["/usr/include/seccomp.h"], "which runc is linked with"),
    package("systemd", Purpose::Kubernetes, &["/usr/lib/systemd/systemd"], "which makes the cgroups of pods on a node of the tests"),
    package("pkg-config", Purpose::Kubernetes, &["pkg-config"], "by which runc's build finds it"),
    package("qemu-system-x86", Purpose::Vm, &["qemu-system-x86_64"], "machines with other kernels"),
    package("cpio", Purpose::Vm, &["cpio"], "their initial file system"),
    package("kmod", Purpose::Vm, &["depmod"], "dependencies of their modules"),
    package("xz-utils", Purpose::Vm, &["xz"], "to unpack those modules"),
];
