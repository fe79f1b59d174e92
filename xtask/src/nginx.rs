//! nginx as the server of demo and benchmark.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use weft_tests::{Place, Process};

use crate::repository::find_command;

/// Starts one nginx process in a place, which answers every request at `port` with `body`, over
/// IPv4 and IPv6. Its files are kept in `folder`, which is made.
pub fn start(place: &Place, folder: &Path, port: u16, body: &str) -> Result<Process> {
    let nginx = find_command("nginx").context("nginx is not installed: cargo xtask setup")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration(port, body)).with_context(|| file.display().to_string())?;
    let server = place
        .run(nginx)
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&file)
        .args(["-e", "stderr"])
        .spawn()?;
    place.await_listening(port)?;
    Ok(server)
}

fn configuration(port: u16, body: &str) -> String {
    // One process without master: what runs in the pod is what serves, as with one worker.
    let mut text = String::from(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\n\
         worker_rlimit_nofile 65536;\n\
         events { worker_connections 16384; multi_accept on; }\n\
         http {\n  access_log off;\n  keepalive_requests 1000000000;\n  tcp_nodelay on;\n",
    );
    for path in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(text, "  {path}_temp_path tmp-{path};");
    }
    let _ = write!(
        text,
        "  server {{\n    listen {port} backlog=4096;\n    listen [::]:{port} backlog=4096;\n    \
         location / {{ default_type text/plain; return 200 '{body}'; }}\n  }}\n}}\n",
    );
    text
}
