use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Args;
use weft_proto::v1::FlowsRequest;
use weft_proto::v1::flows_response::Response;

use super::client::{ClientArgs, answer, block_on};
use super::output::{CompactFlows, Output, Paint, flow_json};

#[derive(Debug, Args)]
pub(super) struct ObserveArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Go on with new flows
    #[arg(short, long)]
    follow: bool,
    /// How many of the remembered flows to show first [default: 20, with --follow 0]
    #[arg(long, value_name = "N")]
    last: Option<u32>,
    /// Only from this client: namespace/pod, pod, an address, or a prefix that ends in *
    #[arg(long, value_name = "PEER")]
    from: Option<String>,
    /// Only to this server: as --from
    #[arg(long, value_name = "PEER")]
    to: Option<String>,
    /// Only where one end is in this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only with this verdict: allowed, denied
    #[arg(long, value_parser = ["allowed", "denied"])]
    verdict: Option<String>,
    /// Only on this path: direct, tunnel, l7, untouched
    #[arg(long, value_parser = ["direct", "tunnel", "l7", "untouched"])]
    path: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl ObserveArgs {
    fn request(&self) -> FlowsRequest {
        FlowsRequest {
            last: self.last.unwrap_or(if self.follow { 0 } else { 20 }),
            follow: self.follow,
            from: self.from.clone().unwrap_or_default(),
            to: self.to.clone().unwrap_or_default(),
            namespace: self.namespace.clone().unwrap_or_default(),
            verdict: self.verdict.clone().unwrap_or_default(),
            path: self.path.clone().unwrap_or_default(),
        }
    }
}

pub(super) fn run(args: &ObserveArgs) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut agent = args.client.observer().await?;
        let mut flows = agent.flows(args.request()).await.map_err(answer)?.into_inner();
        let mut compact = CompactFlows::new(Paint::stdout(), args.output == Output::Wide);
        let mut stdout = BufWriter::new(io::stdout().lock());
        loop {
            // What has been read is shown before there is any waiting.
            let next = tokio::select! {
                biased;
                next = flows.message() => next,
                () = std::future::ready(()) => {
                    stdout.flush()?;
                    flows.message().await
                }
            };
            let Some(message) = next.map_err(answer)? else {
                stdout.flush()?;
                return Ok(ExitCode::SUCCESS);
            };
            match (message.response, args.output) {
                (Some(Response::Flow(flow)), Output::Json) => {
                    writeln!(stdout, "{}", flow_json(&flow))?;
                }
                (Some(Response::Flow(flow)), _) => writeln!(stdout, "{}", compact.line(&flow))?,
                (Some(Response::Lost(lost)), Output::Json) => {
                    writeln!(stdout, "{}", serde_json::json!({ "lost": lost }))?;
                }
                (Some(Response::Lost(lost)), _) => writeln!(stdout, "{}", compact.lost(lost))?,
                (None, _) => {}
            }
        }
    })
}
