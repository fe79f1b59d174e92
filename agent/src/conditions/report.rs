//! The agent's side: tells the leader which versions of objects are in force on this node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use weft_model::mesh::{ObjectRef, ObjectVersion};
use weft_proto::v1::control_client::ControlClient;
use weft_proto::v1::{self as wire, NodeReport};

use crate::ca::client::CaClient;

/// How long one waits until another replica is asked.
const NEXT_REPLICA: Duration = Duration::from_millis(300);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// At most one report in this time.
const BETWEEN: Duration = Duration::from_millis(200);

/// The versions in force, by object.
pub type Versions = Arc<BTreeMap<ObjectRef, ObjectVersion>>;

/// Connects to some replica of `weft ca`, and proves who this is.
pub trait Dial: Send + Sync {
    /// A new connection: the Service chooses a replica for each.
    ///
    /// # Errors
    /// Where the address is malformed.
    fn dial(&self) -> Result<Channel, String>;

    /// A request with this agent's token.
    ///
    /// # Errors
    /// Where there is no token.
    fn authorized<T>(&self, message: T) -> Result<Request<T>, String>;
}

impl Dial for CaClient {
    fn dial(&self) -> Result<Channel, String> {
        self.new_connection().map_err(|error| error.to_string())
    }

    fn authorized<T>(&self, message: T) -> Result<Request<T>, String> {
        Self::authorized(self, message).map_err(|error| error.to_string())
    }
}

/// Reports for ever. `in_force` is what the node enforces.
pub async fn run(dial: impl Dial, mut in_force: watch::Receiver<Option<Versions>>) {
    let mut delay = FIRST_RETRY;
    let mut said = String::new();
    loop {
        // Nothing has been enforced yet: there is nothing to say.
        if in_force.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut accepted = false;
        let ended = stream(&dial, in_force.clone(), &mut accepted).await;
        if accepted {
            delay = FIRST_RETRY;
        }
        if matches!(&ended, Err(status) if status.code() == Code::FailedPrecondition) {
            sleep(NEXT_REPLICA).await;
            continue;
        }
        let reason = ended.err().map_or_else(
            || "it ended the stream".to_owned(),
            |status| format!("{:?}: {}", status.code(), status.message()),
        );
        if reason != said {
            tracing::warn!(reason, "cannot report what is in force; objects' status may lag");
        }
        said = reason;
        sleep(delay).await;
        delay = (delay * 2).min(LAST_RETRY);
    }
}

async fn stream(
    dial: &impl Dial,
    mut in_force: watch::Receiver<Option<Versions>>,
    accepted: &mut bool,
) -> Result<(), Status> {
    let (sender, reports) = mpsc::channel(1);
    let request = dial.authorized(ReceiverStream::new(reports)).map_err(Status::unauthenticated)?;
    let mut client = ControlClient::new(dial.dial().map_err(Status::unavailable)?);
    let mut call = std::pin::pin!(client.report(request));
    let mut told: HashMap<Arc<str>, i64> = HashMap::new();
    let mut complete = true;
    loop {
        let now = in_force.borrow_and_update().clone().unwrap_or_default();
        let report = difference(&mut told, &now, complete);
        if let Some(report) = report {
            tokio::select! {
                ended = &mut call => return ended.map(drop),
                sent = sender.send(report) => {
                    *accepted |= !complete;
                    complete = false;
                    if sent.is_err() {
                        return (&mut call).await.map(drop);
                    }
                }
            }
        }
        tokio::select! {
            ended = &mut call => return ended.map(drop),
            changed = async { sleep(BETWEEN).await; in_force.changed().await } => {
                if changed.is_err() {
                    return Ok(());
                }
                *accepted = true;
            }
        }
    }
}

/// What to say after `told`; nothing if that is all.
pub(super) fn difference(
    told: &mut HashMap<Arc<str>, i64>,
    now: &BTreeMap<ObjectRef, ObjectVersion>,
    complete: bool,
) -> Option<NodeReport> {
    let versions: HashMap<Arc<str>, i64> =
        now.values().map(|version| (version.uid.clone(), version.generation)).collect();
    let in_force: Vec<_> = versions
        .iter()
        .filter(|(uid, generation)| complete || told.get(*uid) != Some(*generation))
        .map(|(uid, generation)| wire::ObjectVersion {
            uid: uid.to_string(),
            generation: *generation,
        })
        .collect();
    let gone: Vec<_> = told
        .keys()
        .filter(|uid| !complete && !versions.contains_key(*uid))
        .map(ToString::to_string)
        .collect();
    *told = versions;
    (complete || !in_force.is_empty() || !gone.is_empty()).then_some(NodeReport {
        complete,
        in_force,
        gone,
    })
}
