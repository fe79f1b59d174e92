//! Flows, status and explanations, for tools.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_common::FlowEvent;
use weft_proto::v1::flows_response::Response as FlowOrLost;
use weft_proto::v1::observer_server::Observer;
use weft_proto::v1::{
    ExplainRequest, ExplainResponse, FlowsRequest, FlowsResponse, StatusRequest, StatusResponse,
};

use crate::explain::explain;
use crate::flows::{Enricher, Filter, FlowRing};
use crate::snapshot::Snapshots;

/// Events that are copied out of the ring at once.
const BATCH: usize = 1024;

/// A question to the reconciler, which owns the kernel.
pub enum Ask {
    /// What is in force.
    Status(oneshot::Sender<StatusResponse>),
    /// A process of the proxy's user has connected. Before it is told anything, its programs are
    /// attached; the answer says why that cannot be.
    ProxyConnected {
        /// Its number, in the agent's pid namespace.
        process: u32,
        /// The answer.
        answer: oneshot::Sender<Result<(), String>>,
    },
}

/// The service.
pub struct ObserverService {
    /// Name of the node.
    pub node: Arc<str>,
    /// What happened.
    pub flows: Arc<FlowRing>,
    /// What is in force.
    pub snapshots: Arc<Snapshots>,
    /// To the reconciler.
    pub ask: mpsc::Sender<Ask>,
}

type FlowsStream = Pin<Box<dyn Stream<Item = Result<FlowsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Observer for ObserverService {
    type FlowsStream = FlowsStream;

    async fn flows(&self, request: Request<FlowsRequest>) -> Result<Response<FlowsStream>, Status> {
        let request = request.into_inner();
        let filter =
            Filter::new(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(BATCH);
        let reader = Reader {
            ring: self.flows.clone(),
            enricher: Enricher::new(self.node.clone(), self.snapshots.clone()),
            filter,
            sender,
        };
        tokio::spawn(reader.run(request.last as usize, request.follow));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let (sender, receiver) = oneshot::channel();
        let gone = || Status::unavailable("the agent is shutting down");
        self.ask.send(Ask::Status(sender)).await.map_err(|_| gone())?;
        receiver.await.map(Response::new).map_err(|_| gone())
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let snapshot = self.snapshots.current().ok_or_else(|| {
            Status::failed_precondition("no policy has been applied yet: see `weft status`")
        })?;
        let request = request.into_inner();
        explain(&snapshot.mesh, snapshot.mesh.settings.same_node_mtls, &request)
            .map(Response::new)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Reads the ring for one tool.
struct Reader {
    ring: Arc<FlowRing>,
    enricher: Enricher,
    filter: Filter,
    sender: mpsc::Sender<Result<FlowsResponse, Status>>,
}

/// The tool has gone.
struct Gone;

impl Reader {
    async fn run(mut self, last: usize, follow: bool) {
        let mut arrivals = self.ring.subscribe();
        let mut lost_before = self.ring.lost();
        let (_, mut next) = self.ring.bounds();
        let remembered = self.last(last, next);
        if !remembered.is_empty() && self.send_events(&remembered).await.is_err() {
            return;
        }
        if !follow {
            return;
        }
        let mut events = Vec::with_capacity(BATCH);
        loop {
            arrivals.mark_unchanged();
            events.clear();
            let (missed, then) = self.ring.read(next, BATCH, &mut events);
            next = then;
            let lost = self.ring.lost();
            let total = missed + lost.saturating_sub(lost_before);
            lost_before = lost;
            if total > 0 && self.send(FlowOrLost::Lost(total)).await.is_err() {
                return;
            }
            if !events.is_empty() {
                let batch = std::mem::take(&mut events);
                let sent = self.send_events(&batch).await;
                events = batch;
                if sent.is_err() {
                    return;
                }
                continue;
            }
            tokio::select! {
                changed = arrivals.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.sender.closed() => return,
            }
        }
    }

    /// The last `count` events before `end` that match, oldest first.
    fn last(&mut self, count: usize, mut end: u64) -> Vec<FlowEvent> {
        let mut found = Vec::new();
        let mut batch = Vec::with_capacity(BATCH);
        while found.len() < count {
            let (first, _) = self.ring.bounds();
            let start = end.saturating_sub(BATCH as u64).max(first);
            if start >= end {
                break;
            }
            batch.clear();
            let (missed, _) = self.ring.read(start, (end - start) as usize, &mut batch);
            if missed > 0 && missed >= end - start {
                break;
            }
            for event in batch.iter().rev() {
                if found.len() == count {
                    break;
                }
                if self.filter.may_match(event) && self.filter.matches(&self.enricher.enrich(event))
                {
                    found.push(*event);
                }
            }
            end = start;
        }
        found.reverse();
        found
    }

    async fn send_events(&mut self, events: &[FlowEvent]) -> Result<(), Gone> {
        self.enricher.refresh();
        for event in events {
            if !self.filter.may_match(event) {
                continue;
            }
            let flow = self.enricher.enrich(event);
            if self.filter.matches(&flow) {
                self.send(FlowOrLost::Flow(flow)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, response: FlowOrLost) -> Result<(), Gone> {
        let response = FlowsResponse { response: Some(response) };
        self.sender.send(Ok(response)).await.map_err(|_| Gone)
    }
}
