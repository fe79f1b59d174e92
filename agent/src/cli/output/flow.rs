use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use time::OffsetDateTime;
use time::macros::format_description;
use weft_proto::v1::{Flow, Peer, Rule};

use super::{Paint, timestamp};

/// Beyond this a long name no longer widens the column for all lines after it.
const WIDEST: usize = 56;

/// Prints flows a line each. Columns are as wide as the widest of what has been printed.
#[derive(Debug)]
pub struct CompactFlows {
    paint: Paint,
    wide: bool,
    source: usize,
    destination: usize,
}

impl CompactFlows {
    /// With the columns of `-o compact`, or those of `-o wide`.
    pub fn new(paint: Paint, wide: bool) -> Self {
        Self { paint, wide, source: 0, destination: 0 }
    }

    /// The line of a flow.
    pub fn line(&mut self, flow: &Flow) -> String {
        let source = column(&mut self.source, end(flow.source.as_ref(), &flow.protocol));
        let mut to = end(flow.destination.as_ref(), &flow.protocol);
        if let Some(dialled) = dialled(flow) {
            let _ = write!(to, " via {dialled}");
        }
        let destination = column(&mut self.destination, to);
        let verdict = format!("{:<7}", flow.verdict.to_uppercase());
        let mut line = format!(
            "{} {source} -> {destination} {:<4} {:<6} {} {:<9}",
            self.paint.dim(self.time(flow)),
            flow.protocol,
            flow.event,
            self.paint.verdict(&flow.verdict, verdict),
            flow.path,
        );
        if self.wide {
            let identity = |peer: Option<&Peer>| {
                peer.map(|peer| peer.identity.clone())
                    .filter(|identity| !identity.is_empty())
                    .unwrap_or_else(|| "-".to_owned())
            };
            let _ = write!(
                line,
                " {:<7} {:<11} {} => {}",
                flow.direction,
                if flow.accelerated { "accelerated" } else { "-" },
                identity(flow.source.as_ref()),
                identity(flow.destination.as_ref()),
            );
        }
        if flow.event == "close" || flow.event == "cut" {
            let _ = write!(
                line,
                " {} out, {} in, {}",
                bytes(flow.bytes_out),
                bytes(flow.bytes_in),
                duration(Duration::from_nanos(flow.duration)),
            );
        }
        // The rule says more than that there is one.
        match &flow.rule {
            Some(rule) if self.wide || flow.verdict == "denied" => {
                let _ = write!(line, " {}: {}", flow.reason, rule_text(rule));
            }
            Some(rule) => {
                let _ = write!(line, " {}", rule_text(rule));
            }
            None => {
                let _ = write!(line, " {}", self.paint.dim(&flow.reason));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// The line for events that were lost.
    pub fn lost(&self, lost: u64) -> String {
        self.paint.doubtful(format_args!("{lost} events lost"))
    }

    fn time(&self, flow: &Flow) -> String {
        if self.wide {
            return timestamp(flow.time);
        }
        let format = format_description!("[hour]:[minute]:[second].[subsecond digits:3]");
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(flow.time))
            .ok()
            .and_then(|time| time.format(format).ok())
            .unwrap_or_default()
    }
}

fn column(width: &mut usize, text: String) -> String {
    *width = (*width).max(text.chars().count().min(WIDEST));
    format!("{text:<width$}", width = *width)
}

/// `shop/web:34567`, `10.0.0.1:80`, `[fd00::1]:80`; without the port where there are none.
fn end(peer: Option<&Peer>, protocol: &str) -> String {
    let Some(peer) = peer else { return "?".to_owned() };
    let ports = !protocol.starts_with("icmp");
    let name = match (peer.namespace.as_str(), peer.pod.as_str()) {
        (_, "") => None,
        ("", pod) => Some(pod.to_owned()),
        (namespace, pod) => Some(format!("{namespace}/{pod}")),
    };
    match (name, ports) {
        (Some(name), true) => format!("{name}:{}", peer.port),
        (Some(name), false) => name,
        (None, true) => match peer.address.parse::<IpAddr>() {
            Ok(address) => {
                SocketAddr::new(address, u16::try_from(peer.port).unwrap_or_default()).to_string()
            }
            Err(_) => format!("{}:{}", peer.address, peer.port),
        },
        (None, false) => peer.address.clone(),
    }
}

/// The service that was dialled with its port, or the address.
fn dialled(flow: &Flow) -> Option<String> {
    match (flow.service.as_str(), flow.dialled.as_str()) {
        ("", "") => None,
        ("", address) => Some(address.to_owned()),
        (service, address) => {
            let port = address.parse::<SocketAddr>().ok().map(|address| address.port());
            Some(port.map_or_else(|| service.to_owned(), |port| format!("{service}:{port}")))
        }
    }
}

/// `NetworkPolicy shop/api spec.ingress[0] (shop.yaml:12)`
pub(in crate::cli) fn rule_text(rule: &Rule) -> String {
    let mut text = format!("{} ", rule.kind);
    if !rule.namespace.is_empty() {
        let _ = write!(text, "{}/", rule.namespace);
    }
    let _ = write!(text, "{} {}", rule.name, rule.field);
    if !rule.file.is_empty() {
        let _ = write!(text, " ({}:{})", rule.file, rule.line);
    }
    text
}

/// A flow for programs. Its time is text (RFC 3339): nanoseconds do not fit in a JSON number.
pub(in crate::cli) fn flow_json(flow: &Flow) -> serde_json::Value {
    let mut value = serde_json::to_value(flow).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("time".to_owned(), timestamp(flow.time).into());
    }
    value
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{count} {name}") } else { format!("{value:.1} {name}") }
}

fn duration(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}
