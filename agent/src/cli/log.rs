use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Where log lines go and how they look.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or per module (`info,weft_agent::kernel=debug`)
    #[arg(long = "log", env = "WEFT_LOG", value_name = "LEVEL", global = true)]
    level: Option<String>,
    /// How log lines look
    #[arg(
        long,
        env = "WEFT_LOG_FORMAT",
        value_enum,
        default_value_t,
        global = true,
        hide_default_value = true
    )]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

impl LogArgs {
    /// Begins to log, to standard error.
    pub(super) fn start(&self, default_level: &str) -> anyhow::Result<()> {
        let level = self.level.as_deref().unwrap_or(default_level);
        let filter = EnvFilter::try_new(level)
            .with_context(|| format!("--log: {level:?} is no level or list of levels"))?
            // It reports every attempt; who asked reports what became of it.
            .add_directive("kube_client::client::builder=off".parse()?);
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let colour = super::output::colours(&std::io::stderr());
        let started = match self.log_format {
            LogFormat::Text => builder.with_ansi(colour).try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        started.map_err(|error| anyhow::anyhow!("logging: {error}"))
    }
}
