//! A Kubernetes to try things on: `cargo run -p weft-tests --example kubernetes -- up`, and
//! `down` when it is done with. Needs `cargo xtask kubernetes`, and root.

use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_tests::{Cluster, Cni, KubernetesCluster, KubernetesOptions};

/// Brings a Kubernetes up on this machine, or takes it down.
#[derive(Parser)]
struct Arguments {
    /// Its name; it becomes `weft-NAME`.
    #[arg(long, global = true, default_value = "try")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring it up, and leave it up.
    Up {
        /// The `bridge` plugin in place of `ptp`.
        #[arg(long)]
        bridge: bool,
        /// Without kube-proxy.
        #[arg(long)]
        without_kube_proxy: bool,
        /// With CoreDNS.
        #[arg(long)]
        dns: bool,
    },
    /// Bring images of an archive to its nodes.
    Import {
        /// The archive.
        archive: std::path::PathBuf,
    },
    /// Install Weft by its chart; its image has been imported.
    Install {
        /// The image, `repository:tag`.
        image: String,
        /// A value of the chart, `KEY=VALUE`.
        #[arg(long)]
        set: Vec<String>,
    },
    /// Remove every trace of it.
    Down,
}

fn main() -> Result<()> {
    let Arguments { name, command } = Arguments::parse();
    let full_name = format!("weft-{name}");
    match command {
        Command::Up { bridge, without_kube_proxy, dns } => {
            let mut options = KubernetesOptions::default().name(&name);
            if bridge {
                options = options.cni(Cni::Bridge);
            }
            if without_kube_proxy {
                options = options.without_kube_proxy();
            }
            if dns {
                options = options.dns();
            }
            let start = Instant::now();
            let cluster = KubernetesCluster::start(&options)?;
            println!("up in {:.1} s", start.elapsed().as_secs_f64());
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            cluster.keep()
        }
        Command::Import { archive } => KubernetesCluster::load(&full_name)?.import_image(&archive),
        Command::Install { image, set } => {
            let set: Vec<_> = set.iter().map(String::as_str).collect();
            KubernetesCluster::load(&full_name)?.install_weft(&image, &set)
        }
        Command::Down => {
            print!("removed:\n{}", Cluster::remove(&full_name)?);
            Ok(())
        }
    }
}
