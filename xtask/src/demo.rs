//! The bookshop on a mesh of two nodes, on this machine.

mod expectation;
mod flows;
mod kubernetes;
mod shop;
mod stage;

use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use comfy_table::{Cell, Color, Table, presets};
use weft_tests::{Cluster, MeshOptions, Process, binary};

use self::expectation::{PLAN, Plan, Seen};
use self::shop::Shop;
use self::stage::{Standalone, traffic};
use crate::nginx;
use crate::repository::root;
use crate::steps::Steps;

/// The demo's cluster; there is one at a time.
const NAME: &str = "demo";
/// What the test cluster calls it.
const FULL_NAME: &str = "weft-demo";
/// `cargo xtask demo`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// On a real Kubernetes, with Weft installed by its chart.
    #[arg(long)]
    kubernetes: bool,
    /// Leave the mesh up, and print how to play with it.
    #[arg(long)]
    keep: bool,
    #[command(subcommand)]
    command: Option<DemoCommand>,
}

#[derive(Subcommand)]
enum DemoCommand {
    /// Run a program in a pod of the demo that was kept: `exec web -- curl ...`
    Exec {
        /// `namespace/name`, or a name alone where it is the only one.
        pod: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Run a `weft` command against an agent of the demo that was kept: `weft -- observe`
    Weft {
        /// The node.
        #[arg(long, default_value = "node-a")]
        node: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Remove every trace of the demo.
    Down,
}

impl Arguments {
    /// Whether everything has to be built first.
    pub fn needs_artifacts(&self) -> bool {
        self.command.is_none()
    }
}

/// Runs the demo, or what is asked of one that was kept.
///
/// # Errors
/// When the mesh does not come up, or something is not as expected.
pub fn run(steps: &mut Steps, arguments: Arguments) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads eBPF programs: run it as root"
    );
    match arguments.command {
        None if arguments.kubernetes => kubernetes::demo(steps, arguments.keep),
        None => demo(steps, arguments.keep),
        Some(DemoCommand::Exec { pod, words }) => exec(&pod, words),
        Some(DemoCommand::Weft { node, words }) => weft(&node, &words),
        Some(DemoCommand::Down) => down(),
    }
}

fn demo(steps: &mut Steps, keep: bool) -> Result<ExitCode> {
    let start = Instant::now();
    let folder = root().join("examples/bookshop");
    let shop = Shop::read(&folder)?;
    let plan = Plan::read(&root().join(PLAN))?;
    Cluster::remove(FULL_NAME).context("an earlier demo is in the way")?;

    let cluster = steps.during("two nodes, and the shop's pods", |_| cluster(&shop, &plan))?;
    let servers = steps.during("nginx in every pod", |_| serve(&cluster, &shop, &plan))?;
    for file in &shop.policies {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        cluster.apply(&name, &std::fs::read_to_string(file)?)?;
    }
    let mesh = steps
        .during("agent and proxy on both nodes", |_| cluster.start_mesh(&MeshOptions::default()))?;
    let stage = Standalone { cluster: &cluster, mesh: &mesh };
    let seen = steps.during("the shop's traffic", |_| traffic(&stage, &plan))?;

    let disagree = print(&plan, &seen);
    let total = plan.expectations.len();
    if keep {
        cluster.keep()?;
        print_how_to_play(&cluster)?;
        servers.into_iter().for_each(Process::detach);
        mesh.detach();
    }
    Ok(conclude(disagree, total, start))
}

/// Says how many are not as expected.
fn conclude(disagree: usize, total: usize, start: Instant) -> ExitCode {
    let seconds = start.elapsed().as_secs_f64();
    if disagree > 0 {
        println!("\n{disagree} of {total} connections are not as expected ({seconds:.1} s)");
        return ExitCode::FAILURE;
    }
    println!("\nall {total} connections are as expected ({seconds:.1} s)");
    ExitCode::SUCCESS
}

fn cluster(shop: &Shop, plan: &Plan) -> Result<Cluster> {
    let mut builder = Cluster::builder().name(NAME);
    for node in &plan.nodes {
        builder = builder.node(node);
    }
    for host in plan.hosts.keys() {
        builder = builder.outside(host);
    }
    for namespace in &shop.namespaces {
        builder = builder.namespace(namespace.clone());
    }
    for service in &shop.services {
        builder = builder.service(service.clone());
    }
    builder.pods(shop.pods.iter().map(|(pod, _)| pod.clone())).build()
}

fn serve(cluster: &Cluster, shop: &Shop, plan: &Plan) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for (spec, port) in &shop.pods {
        let Some(port) = port else { continue };
        let pod = cluster.pod(&spec.key())?;
        let folder = cluster.directory().join("nginx").join(spec.key().replace('/', "."));
        servers.push(nginx::start(&pod, &folder, *port, &format!("hello from {}\n", pod.key()))?);
    }
    for (name, port) in &plan.hosts {
        let host = cluster.node(name)?;
        let folder = cluster.directory().join("nginx").join(name);
        servers.push(nginx::start(host, &folder, *port, &format!("hello from {name}\n"))?);
    }
    Ok(servers)
}

/// Prints the table; returns how many do not agree.
fn print(plan: &Plan, seen: &[Seen]) -> usize {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["", "FROM", "TO", "PATH", "IDENTITY", "EXPECTED", "SEEN", "POLICY", "AT"]);
    if !std::io::stdout().is_terminal() {
        table.force_no_tty();
    }
    let mut details = Vec::new();
    for (expected, seen) in plan.expectations.iter().zip(seen) {
        let differences = seen.differences(expected);
        let (mark, color) = match differences.is_empty() {
            true => ("ok", Color::Green),
            false => ("!!", Color::Red),
        };
        let verdict = match &seen.answer {
            Some(Ok(())) => "allowed",
            _ => "denied",
        };
        let family = if expected.family == 6 { " (IPv6)" } else { "" };
        let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        table.add_row([
            Cell::new(mark).fg(color),
            Cell::new(&expected.from),
            Cell::new(format!("{}:{}{family}", expected.to, expected.port)),
            Cell::new(dash(&seen.path)),
            Cell::new(seen.identity.as_deref().map_or("-", short_identity)),
            Cell::new(&expected.verdict),
            Cell::new(verdict),
            Cell::new(dash(&seen.policy)),
            Cell::new(dash(&seen.place)),
        ]);
        if !differences.is_empty() {
            details.push(format!(
                "{} to {}: {}",
                expected.from,
                expected.to,
                differences.join("; ")
            ));
        }
    }
    println!("\n{table}");
    for line in &details {
        println!("!! {line}");
    }
    details.len()
}

/// A SPIFFE id without its trust domain, which is the same for all.
fn short_identity(identity: &str) -> &str {
    identity.split_once("/ns/").map_or(identity, |(_, rest)| rest)
}

fn print_how_to_play(cluster: &Cluster) -> Result<()> {
    let catalog = cluster.service("shop/catalog")?.ipv4;
    let payments = cluster.service("bank/payments")?.ipv4;
    println!(
        "\nThe mesh is left up. Its manifests are in {}: edit one, and it is in force at once.\n\n  \
         cargo xtask demo exec web -- curl -s http://{catalog}/      # shop/catalog: allowed\n  \
         cargo xtask demo exec web -- curl -sS http://{payments}:443/  # bank/payments: denied\n  \
         cargo xtask demo weft -- observe --last 20\n  \
         cargo xtask demo weft --node node-b -- observe --verdict denied  # told where it is denied\n  \
         cargo xtask demo weft --node node-b -- status\n  \
         cargo xtask demo weft -- policy explain shop/web shop/catalog 8080\n  \
         cargo xtask demo down",
        cluster.manifests().display()
    );
    Ok(())
}

fn load() -> Result<Cluster> {
    Cluster::load(FULL_NAME).context("the demo is not up: start it with `cargo xtask demo --keep`")
}

fn exec(pod: &str, words: Vec<String>) -> Result<ExitCode> {
    let cluster = load()?;
    let suffix = format!("/{pod}");
    let found: Vec<_> = cluster
        .pods()
        .into_iter()
        .filter(|candidate| candidate.key() == pod || candidate.key().ends_with(&suffix))
        .collect();
    let pod = match &found[..] {
        [pod] => pod,
        [] => {
            let names: Vec<_> = cluster.pods().iter().map(|pod| pod.key()).collect();
            bail!("the demo has no pod {pod}; it has {}", names.join(", "))
        }
        _ => bail!("there are several pods {pod}: say `namespace/name`"),
    };
    let mut words = words.into_iter();
    let program = words.next().context("a program to run")?;
    Ok(exit_code(pod.run(program).args(words).interactive()?))
}

fn weft(node: &str, words: &[String]) -> Result<ExitCode> {
    let cluster = load()?;
    let node = cluster.mesh_node(cluster.node(node)?, &MeshOptions::default())?;
    let mut command = Command::new(binary("weft")?);
    command.args(words).env("WEFT_RUN_DIR", node.run_directory());
    Ok(exit_code(command.status().context("cannot run weft")?))
}

fn down() -> Result<ExitCode> {
    let mut empty = true;
    for name in [FULL_NAME, kubernetes::FULL_NAME] {
        let traces = Cluster::remove(name)?;
        if !traces.is_empty() {
            print!("removed:\n{traces}");
            empty = false;
        }
    }
    if empty {
        println!("there was nothing of the demo");
    }
    Ok(ExitCode::SUCCESS)
}

/// As a shell has it: the program's own, or 128 and the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
