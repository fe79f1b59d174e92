//! The gRPC service to which agents report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::interval;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use weft_model::mesh::ObjectVersion;
use weft_proto::v1::control_server::Control;
use weft_proto::v1::{NodeReport, ReportResponse};

use super::Shared;

/// How soon a stream notices that its replica leads no more.
const LOOK: Duration = Duration::from_secs(1);
/// Objects that a node may speak of: far more than there are, and a bound on what is held.
const MOST_OBJECTS: usize = 100_000;

/// Says which node a caller is the agent of.
#[tonic::async_trait]
pub trait Nodes: Clone + Send + Sync + 'static {
    /// The node of the agent whose token is in a request's metadata.
    async fn node(&self, metadata: &MetadataMap) -> Result<String, Status>;
}

/// The service.
#[derive(Clone)]
pub struct ControlService<N> {
    shared: Shared,
    nodes: N,
}

impl<N: Nodes> ControlService<N> {
    /// Writes what agents say to the leader's board.
    pub fn new(shared: Shared, nodes: N) -> Self {
        Self { shared, nodes }
    }

    async fn follow(
        &self,
        node: &Arc<str>,
        stream: u64,
        reports: &mut Streaming<NodeReport>,
    ) -> Result<(), Status> {
        let mut look = interval(LOOK);
        let mut spoken_of = 0_usize;
        loop {
            let report = tokio::select! {
                report = reports.message() => report?,
                _ = look.tick() => {
                    if self.shared.leads() {
                        continue;
                    }
                    return Err(no_leader());
                }
            };
            let Some(NodeReport { complete, in_force, gone }) = report else { return Ok(()) };
            if complete {
                spoken_of = 0;
            }
            spoken_of = spoken_of.saturating_add(in_force.len()).saturating_sub(gone.len());
            if spoken_of > MOST_OBJECTS {
                return Err(Status::resource_exhausted(format!(
                    "a node may speak of at most {MOST_OBJECTS} objects"
                )));
            }
            let in_force = in_force.into_iter().map(|version| ObjectVersion {
                uid: version.uid.into(),
                generation: version.generation,
            });
            let taken = self
                .shared
                .with(|board| board.report(node, stream, complete, in_force, gone))
                .ok_or_else(no_leader)?;
            if !taken {
                return Err(Status::aborted("another stream speaks for this node now"));
            }
        }
    }
}

fn no_leader() -> Status {
    Status::failed_precondition("this replica does not lead; another one does")
}

#[tonic::async_trait]
impl<N: Nodes> Control for ControlService<N> {
    async fn report(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<ReportResponse>, Status> {
        // Before the token is reviewed: others have the work of it.
        if !self.shared.leads() {
            return Err(no_leader());
        }
        let (metadata, _, mut reports) = request.into_parts();
        let node: Arc<str> = self.nodes.node(&metadata).await?.into();
        let stream = self.shared.with(|board| board.connected(&node)).ok_or_else(no_leader)?;
        tracing::debug!(%node, "reports");
        let ended = Ended { shared: &self.shared, node: &node, stream };
        let result = self.follow(&node, stream, &mut reports).await;
        drop(ended);
        result.map(|()| Response::new(ReportResponse {}))
    }
}

/// Says that a stream has ended, also where the call is dropped.
struct Ended<'a> {
    shared: &'a Shared,
    node: &'a str,
    stream: u64,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.shared.with(|board| board.disconnected(self.node, self.stream, Instant::now()));
    }
}
