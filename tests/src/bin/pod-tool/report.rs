use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Writes a line, as a whole.
pub fn report(line: Value) {
    let mut text = line.to_string();
    text.push('\n');
    // Who started this process may have gone; there is nobody to tell.
    io::stdout().lock().write_all(text.as_bytes()).ok();
}

/// An error of the system as its name and number.
pub fn errno(error: &io::Error) -> Value {
    let code = error.raw_os_error();
    let name = match error.kind() {
        io::ErrorKind::TimedOut if code.is_none() => "timeout".to_owned(),
        _ => code.map_or_else(|| error.to_string(), name),
    };
    json!({ "name": name, "code": code })
}

fn name(code: i32) -> String {
    let name = match code {
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::EAGAIN => "EAGAIN",
        libc::EPIPE => "EPIPE",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EMFILE => "EMFILE",
        libc::EINVAL => "EINVAL",
        _ => return format!("errno {code}"),
    };
    name.to_owned()
}

/// Microseconds since the Unix epoch, to compare with other processes.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
