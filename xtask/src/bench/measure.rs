//! One measurement each: wrk, iperf3, and what the kernel says of processes.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_tests::Pod;

use crate::repository::find_command;

/// How long each measurement runs.
const SECONDS: u64 = 3;

/// What wrk says.
pub struct Load {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests per second.
    pub per_second: f64,
    /// Median latency in microseconds.
    pub median_us: f64,
}

/// Has wrk ask for the page from one thread.
///
/// # Errors
/// When wrk fails, or a request does.
pub fn wrk(client: &Pod, server: SocketAddr, connections: u32, keep_alive: bool) -> Result<Load> {
    let mut run = client
        .run(find_command("wrk").context("wrk is not installed: cargo xtask setup")?)
        .args(["--threads", "1", "--latency"])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{SECONDS}s")]);
    if !keep_alive {
        run = run.args(["--header", "Connection: close"]);
    }
    let limit = Duration::from_secs(SECONDS + 20);
    let text = run.arg(format!("http://{server}/")).limit(limit).output()?.success()?;
    read_wrk(&text)
}

fn read_wrk(text: &str) -> Result<Load> {
    let missing = || format!("wrk printed:\n{text}");
    let value = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start));
        line.map(str::trim)
    };
    ensure!(value("Non-2xx or 3xx responses:").is_none(), "requests were refused: {text}");
    // "Socket errors: connect 0, read 12, ..." is printed only where there are some. With
    // "Connection: close", wrk counts every close as a read error on some versions.
    if let Some(errors) = value("Socket errors:") {
        tracing::info!("wrk: {errors}");
    }
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok());
    Ok(Load {
        requests: requests.with_context(missing)?,
        per_second: value("Requests/sec:")
            .and_then(|rate| rate.parse().ok())
            .with_context(missing)?,
        median_us: value("50%").and_then(microseconds).with_context(missing)?,
    })
}

/// Reads wrk's `57.00us`, `1.02ms`, `1.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// Sends one stream, and says how many Gbit/s arrived.
pub fn iperf3(client: &Pod, server: SocketAddr) -> Result<f64> {
    let text = client
        .run(find_command("iperf3").context("iperf3 is not installed: cargo xtask setup")?)
        .args(["--json", "--client", &server.ip().to_string()])
        .args(["--port", &server.port().to_string(), "--time", &SECONDS.to_string()])
        .limit(Duration::from_secs(SECONDS + 20))
        .output()?
        .stdout;
    let report: serde_json::Value = serde_json::from_str(&text).context("iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("iperf3: {}", report["error"]))? / 1e9)
}

/// CPU time that a process has used, in microseconds.
pub fn cpu_us(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // proc(5): the name in parentheses may hold anything; utime and stime are fields 14 and 15.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |field: usize| {
        let value = fields.split_whitespace().nth(field - 3).and_then(|v| v.parse::<u64>().ok());
        value.with_context(|| format!("/proc/{pid}/stat: {text}"))
    };
    #[allow(clippy::cast_precision_loss)]
    let ticks = (ticks(14)? + ticks(15)?) as f64;
    #[allow(clippy::cast_precision_loss)]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks / per_second * 1e6)
}

/// Resident memory of a process, in KiB.
pub fn rss_kb(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("/proc/{pid}/status has no VmRSS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_wrk_prints() -> Result<()> {
        let text = "Running 3s test @ http://10.0.0.1:8080/\n  1 threads and 64 connections\n  \
                    Thread Stats   Avg      Stdev     Max   +/- Stdev\n  Latency Distribution\n     \
                    50%  421.00us\n     75%    1.02ms\n  413427 requests in 3.00s, 50.1MB read\n\
                    Requests/sec: 137800.12\nTransfer/sec:     16.70MB\n";
        let load = read_wrk(text)?;
        assert_eq!(load.requests, 413_427);
        assert!((load.per_second - 137_800.12).abs() < 1e-6);
        assert!((load.median_us - 421.0).abs() < 1e-6);
        assert_eq!(microseconds("1.02ms"), Some(1020.0));
        assert_eq!(microseconds("1.02h"), None);
        Ok(())
    }
}
