//! Writes statuses by server-side apply.

use futures::{StreamExt, stream};
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use weft_model::mesh::ObjectRef;

use super::board::Write;
use super::kinds;
use crate::crd::ObjectStatus;

/// Whose fields they are.
const FIELD_MANAGER: &str = "weft-status";
/// Writes at once.
const CONCURRENT: usize = 8;

/// What became of a write.
pub(super) struct Written {
    pub object: ObjectRef,
    /// What was written; none if nothing was.
    pub done: Option<ObjectStatus>,
}

/// Writes all of them.
pub(super) async fn all(client: &Client, writes: Vec<Write>) -> Vec<Written> {
    stream::iter(writes)
        .map(|write| one(client, write))
        .buffer_unordered(CONCURRENT)
        .collect()
        .await
}

async fn one(client: &Client, write: Write) -> Written {
    let Write { object, api_version, uid, status } = write;
    let Some((kind, resource)) = kinds::resource(&api_version, &object.kind) else {
        return Written { object, done: None };
    };
    let api: Api<DynamicObject> = match kind.is_namespaced {
        true => Api::namespaced_with(client.clone(), &object.name.namespace, resource),
        false => Api::all_with(client.clone(), resource),
    };
    let applied = json!({
        "apiVersion": *api_version,
        "kind": *object.kind,
        "metadata": { "name": *object.name.name, "uid": *uid },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let done = match api.patch_status(&object.name.name, &params, &Patch::Apply(applied)).await {
        Ok(_) => Some(status),
        // It is gone, or another has its name: the watch will say so.
        Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => None,
        Err(error) => {
            tracing::warn!(%object, %error, "its status cannot be written");
            None
        }
    };
    Written { object, done }
}
