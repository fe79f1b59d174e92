//! Images for the cluster's own pods, for tests, and Weft's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tools::kubernetes_program;
use crate::image::{Compression, Image, write_archive};
use crate::mesh::binary;

/// What every node has for the pods of tests: busybox with its commands, `pod-tool`, `curl`,
/// and `serve`, which answers HTTP with nginx: `args: [serve, "8080"]`.
pub const WORKLOAD_IMAGE: &str = "weft.test/workload:1";
/// What holds a pod's namespaces.
pub(super) const PAUSE_IMAGE: &str = "weft.test/pause:1";
pub(super) const COREDNS_IMAGE: &str = "weft.test/coredns:1";

/// Commands of busybox that the workload image has.
const BUSYBOX: &[&str] = &[
    "awk", "cat", "cut", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "httpd",
    "id", "ip", "kill", "ls", "mkdir", "mkfifo", "nc", "netstat", "nslookup", "ping", "printf",
    "ps", "rm", "sed", "sh", "sleep", "stat", "tail", "tee", "test", "timeout", "top", "touch",
    "tr", "true", "wc", "wget",
];

/// Serves `hello from NAMESPACE/POD` at each of the ports. A pod of the standalone demo runs the
/// machine's own nginx alike.
const SERVE: &str = r#"#!/bin/sh
set -e
namespace=$(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)
{
    echo 'daemon off; master_process off; pid /tmp/nginx.pid; error_log stderr;'
    echo 'events { worker_connections 4096; }'
    echo 'http { access_log off;'
    for path in client_body proxy fastcgi uwsgi scgi; do
        echo "${path}_temp_path /tmp/$path;"
    done
    echo 'server {'
    for port; do
        echo "listen $port; listen [::]:$port;"
    done
    echo 'location / { default_type text/plain;'
    echo "return 200 'hello from $namespace/$(hostname)\n'; } } }"
} > /tmp/nginx.conf
exec nginx -p /tmp -c /tmp/nginx.conf -e stderr
"#;

/// Weft's image: the agent and command line at `/usr/bin/weft`, the proxy at
/// `/usr/bin/weft-proxy`, and a user for the latter (65532). `binaries` is the directory with
/// both; `reference` the image's full name.
///
/// # Errors
/// A program, or a library that it needs, is not there.
pub fn weft_image(reference: &str, binaries: &Path) -> Result<Image> {
    with_users(Image::new(reference))
        .label("org.opencontainers.image.title", "weft")
        .label("org.opencontainers.image.licenses", "Apache-2.0")
        .entrypoint(&["/usr/bin/weft"])
        .program("/usr/bin/weft", &binaries.join("weft"))?
        .program("/usr/bin/weft-proxy", &binaries.join("weft-proxy"))
}

/// Writes the archive with the images that every node gets.
pub(super) fn write(archive: &Path, dns: bool) -> Result<()> {
    let pod_tool = binary("pod-tool")?;
    let pause = Image::new(PAUSE_IMAGE)
        .entrypoint(&["/usr/bin/pod-tool", "pause"])
        .program("/usr/bin/pod-tool", &pod_tool)?;
    let mut images = vec![pause, workload(&pod_tool)?];
    if dns {
        let coredns = kubernetes_program("coredns")?;
        let image = Image::new(COREDNS_IMAGE).entrypoint(&["/coredns"]);
        images.push(image.program("/coredns", &coredns)?);
    }
    write_archive(archive, &images, Compression::None)
}

fn workload(pod_tool: &Path) -> Result<Image> {
    let mut image = with_users(Image::new(WORKLOAD_IMAGE))
        .file("/usr/bin/busybox", installed("busybox")?, 0o755)
        .link("/bin", "usr/bin")
        .script("/usr/bin/serve", SERVE)
        .directory("/var/log/nginx", 0o1777)
        .program("/usr/bin/pod-tool", pod_tool)?
        .program("/usr/bin/curl", &installed("curl")?)?
        .program("/usr/bin/nginx", &installed("nginx")?)?;
    for command in BUSYBOX {
        image = image.link(&format!("/usr/bin/{command}"), "busybox");
    }
    Ok(image)
}

fn with_users(image: Image) -> Image {
    image
        .text(
            "/etc/passwd",
            "root:x:0:0:root:/:/bin/sh\nnonroot:x:65532:65532:nonroot:/:/bin/false\n\
             nobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        .text("/etc/group", "root:x:0:\nnonroot:x:65532:\nnogroup:x:65534:\n")
}

/// A program of this machine.
fn installed(name: &str) -> Result<PathBuf> {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/bin"];
    let mut paths = directories.iter().map(|directory| Path::new(directory).join(name));
    let found = paths.find(|path| path.is_file());
    found.with_context(|| format!("{name} is not installed: cargo xtask setup"))
}
