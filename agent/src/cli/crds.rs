use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::output::print;
use crate::crd;

#[derive(Debug, Args)]
pub(super) struct CrdsArgs {
    /// Add the kinds of other dialects that Weft reads
    #[arg(long)]
    compat: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: YamlOrJson,
    /// Write each to a file of this folder, and remove what else is in it
    #[arg(long, hide = true, value_name = "DIR", conflicts_with_all = ["output", "compat"])]
    chart: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum YamlOrJson {
    #[default]
    Yaml,
    Json,
}

pub(super) fn run(args: &CrdsArgs) -> anyhow::Result<ExitCode> {
    if let Some(chart) = &args.chart {
        crd::files::write(chart).with_context(|| format!("--chart {}", chart.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut definitions = crd::own();
    if args.compat {
        definitions.extend(crd::compat());
    }
    match args.output {
        YamlOrJson::Yaml => {
            let texts: Vec<String> =
                definitions.iter().map(crd::yaml).collect::<anyhow::Result<_>>()?;
            print(texts.join("---\n").trim_end())?;
        }
        YamlOrJson::Json => print(serde_json::to_string(&serde_json::json!({
            "apiVersion": "v1",
            "kind": "List",
            "items": definitions,
        }))?)?,
    }
    Ok(ExitCode::SUCCESS)
}
