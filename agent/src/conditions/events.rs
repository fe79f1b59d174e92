//! Publishes Events (events.k8s.io/v1). An Event's name is made of what it says, so the same thing
//! said again, by this leader or the next, is counted in its series.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use super::board::Notice;

/// Who says it.
const CONTROLLER: &str = "weft.dev/status";
/// The longest note that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// At most this many a second: the API server has more to do.
const PER_SECOND: u32 = 10;

/// Publishes until the sender is gone.
pub(super) async fn publish(client: Client, instance: String, mut notices: mpsc::Receiver<Notice>) {
    let mut turns = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while let Some(notice) = notices.recv().await {
        turns.tick().await;
        let event = event(&notice, &instance, Timestamp::now());
        if let Err(error) = post(&client, event).await {
            tracing::warn!(object = %notice.object, %error, "no Event could be published");
        }
    }
}

async fn post(client: &Client, event: Event) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let name = event.metadata.name.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    let count = api.get(&name).await?.series.map_or(1, |series| series.count);
    let series = EventSeries {
        count: count.saturating_add(1),
        last_observed_time: MicroTime(Timestamp::now()),
    };
    let patch = Patch::Merge(json!({ "series": series }));
    api.patch(&name, &PatchParams::default(), &patch).await.map(drop)
}

pub(super) fn event(notice: &Notice, instance: &str, now: Timestamp) -> Event {
    let Notice { object, api_version, uid, reason, note } = notice;
    let mut note = note.clone();
    if note.len() > LONGEST_NOTE {
        note.truncate(note.floor_char_boundary(LONGEST_NOTE - '…'.len_utf8()));
        note.push('…');
    }
    let namespace = Some(&*object.name.namespace).filter(|namespace| !namespace.is_empty());
    let mut hasher = DefaultHasher::new();
    (uid, reason, &note).hash(&mut hasher);
    // Names have at most 253 bytes, which the object's may have used up.
    let mut name = object.name.name.to_string();
    name.truncate(name.floor_char_boundary(253 - 17));
    let name = format!("{}.{:016x}", name.trim_end_matches(['.', '-']), hasher.finish());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            // Events about objects of the cluster stand in `default`.
            namespace: Some(namespace.unwrap_or("default").to_owned()),
            ..ObjectMeta::default()
        },
        action: Some("Read".to_owned()),
        reason: Some((*reason).to_owned()),
        note: Some(note),
        type_: Some("Warning".to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_string()),
            kind: Some(object.kind.to_string()),
            namespace: namespace.map(ToOwned::to_owned),
            name: Some(object.name.name.to_string()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}
