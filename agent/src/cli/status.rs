mod cluster;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use weft_proto::v1::{StatusRequest, StatusResponse};

use super::EXIT_FOUND_WRONG;
use super::client::{ClientArgs, answer, block_on};
use super::cluster::ClusterArgs;
use super::duration;
use super::output::{Paint, TableOrJson, lines, print, table, timestamp};
use crate::agent::observer_socket;

/// Between questions, while waiting.
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Wait this long for the agent to have applied a policy
    #[arg(long, value_parser = duration::parse, value_name = "TIME")]
    wait: Option<Duration>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: TableOrJson,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    // On a node its agent is asked, elsewhere those of the cluster.
    let local = observer_socket(&args.client.run_dir).exists();
    if args.cluster.is_named() || (!local && args.cluster.is_known()) {
        return block_on(cluster::run(&args.cluster, args.output));
    }
    let deadline = args.wait.map(|wait| Instant::now() + wait);
    let status = block_on(async {
        loop {
            let status = ask(args).await;
            let ready = status.as_ref().is_ok_and(|status| status.applied > 0);
            if ready || deadline.is_none_or(|deadline| deadline <= Instant::now()) {
                return status;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    })?;
    match args.output {
        TableOrJson::Table => print(text(&status, Paint::stdout()))?,
        TableOrJson::Json => print(json(&status))?,
    }
    Ok(if status.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FOUND_WRONG)
    })
}

async fn ask(args: &StatusArgs) -> anyhow::Result<StatusResponse> {
    let mut agent = args.client.observer().await?;
    Ok(agent.status(StatusRequest {}).await.map_err(answer)?.into_inner())
}

/// For programs.
pub(super) fn json(status: &StatusResponse) -> serde_json::Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        let applied = if status.applied == 0 {
            serde_json::Value::Null
        } else {
            timestamp(status.applied).into()
        };
        object.insert("applied".to_owned(), applied);
    }
    value
}

/// For people.
pub(super) fn text(status: &StatusResponse, paint: Paint) -> String {
    let mut text = String::new();
    let applied = if status.applied == 0 {
        paint.bad("no policy has been applied yet")
    } else {
        format!("generation {}, applied {}", status.generation, timestamp(status.applied))
    };
    let proxy = if status.proxy_connected { "connected" } else { "not connected" };
    let acceleration = match status.acceleration_reason.as_str() {
        "" => status.acceleration.clone(),
        reason => format!("{} ({reason})", status.acceleration),
    };
    let rows = [
        ("Node", status.node.clone()),
        ("Agent", status.version.clone()),
        ("Policy", applied),
        ("Pods", format!("{} on this node, {} in the mesh", status.pods, status.enrolled)),
        ("Policies", status.policies.to_string()),
        ("Services", status.services.to_string()),
        ("Proxy", proxy.to_owned()),
        ("Acceleration", acceleration),
    ];
    for (name, value) in rows {
        let _ = writeln!(text, "{}{value}", paint.strong(format_args!("{name:<14}")));
    }
    if !status.maps.is_empty() {
        let mut maps = table(&["MAP", "ENTRIES", "CAPACITY", "USED"]);
        for map in &status.maps {
            maps.add_row([
                map.name.clone(),
                map.entries.to_string(),
                map.capacity.to_string(),
                format!("{:.0} %", 100.0 * map.entries as f64 / map.capacity.max(1) as f64),
            ]);
        }
        let _ = writeln!(text, "\n{}", lines(&mut maps));
    }
    if !status.programs.is_empty() {
        let mut programs = table(&["PROGRAM", "ATTACHED", "ID"]);
        for program in &status.programs {
            programs.add_row([&program.name, &program.attached, &program.id.to_string()]);
        }
        let _ = writeln!(text, "\n{}", lines(&mut programs));
    }
    let counters: BTreeMap<_, _> = status.counters.iter().collect();
    if !counters.is_empty() {
        let mut table = table(&["COUNTER", "VALUE"]);
        for (name, value) in counters {
            table.add_row([name, &value.to_string()]);
        }
        let _ = writeln!(text, "\n{}", lines(&mut table));
    }
    for warning in &status.warnings {
        let _ = write!(text, "\n{} {warning}", paint.doubtful("warning:"));
    }
    if !status.warnings.is_empty() {
        text.push('\n');
    }
    if status.problems.is_empty() {
        let _ = write!(text, "\n{}", paint.good("Everything is in force."));
    } else {
        let _ = write!(text, "\n{}", paint.bad("Not in force:"));
        for problem in &status.problems {
            let _ = write!(text, "\n  {problem}");
        }
    }
    text
}
