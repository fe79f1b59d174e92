use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::wait::eventually_async;

/// Requests that are under way at once.
const AT_ONCE: usize = 32;
/// Who applies.
const MANAGER: &str = "weft-tests";

/// The objects of an API server, written as manifests in JSON.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, Scope)>>>,
}

impl Objects {
    /// As the user that a kubeconfig's current context names.
    ///
    /// # Errors
    /// The kubeconfig cannot be read.
    pub async fn new(kubeconfig: &Path) -> Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(read, &options).await?;
        Ok(Self { client: Client::try_from(config)?, kinds: Arc::default() })
    }

    /// What speaks to the API server.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The objects of an object's kind, in its namespace (`default` where it names none and the
    /// kind has namespaces). Waits until the kind is served: a definition that is established may
    /// take a moment.
    ///
    /// # Errors
    /// The kind is never served.
    pub async fn of_kind(&self, object: &Value) -> Result<Api<DynamicObject>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let api_version = text(&object["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
        let known = || self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known().get(&kind).cloned();
        let (resource, scope) = match found {
            Some(found) => found,
            None => {
                let what = format!("{api_version} {} to be served", kind.kind);
                let found = eventually_async(&what, async || {
                    let served = pinned_kind(&self.client, &kind).await;
                    Ok(served.ok().map(|(resource, served)| (resource, served.scope)))
                })
                .await?;
                known().insert(kind, found.clone());
                found
            }
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        Ok(match scope {
            Scope::Namespaced => Api::namespaced_with(self.client(), namespace, &resource),
            Scope::Cluster => Api::all_with(self.client(), &resource),
        })
    }

    /// Applies an object, with a pod's status, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn apply(&self, object: &Value) -> Result<DynamicObject> {
        let api = self.of_kind(object).await?;
        let name = name(object)?;
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(name, &params, &Patch::Apply(object)).await;
        let applied = applied.with_context(|| described(object))?;
        self.write_status(&api, object).await?;
        Ok(applied)
    }

    /// Makes an object that is not there, with a pod's status.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn create(&self, object: &Value) -> Result<()> {
        let api = self.of_kind(object).await?;
        let made = serde_json::from_value(object.clone())?;
        api.create(&PostParams::default(), &made).await.with_context(|| described(object))?;
        self.write_status(&api, object).await
    }

    /// Makes many, in any order.
    ///
    /// # Errors
    /// The API server refuses one of them.
    pub async fn create_all(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        futures::stream::iter(objects)
            .map(|object| async move { self.create(&object).await })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Deletes an object, at once.
    ///
    /// # Errors
    /// There is none.
    pub async fn delete(&self, object: &Value) -> Result<()> {
        let api = self.of_kind(object).await?;
        let now = DeleteParams::default().grace_period(0);
        api.delete(name(object)?, &now).await.with_context(|| described(object))?;
        Ok(())
    }

    /// A token of an account for an hour, as a kubelet asks for it: for the API server itself
    /// where no audience is given, bound to a pod or not.
    ///
    /// # Errors
    /// There is no such account or pod.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<&str>,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.map(str::to_owned).into_iter().collect(),
                bound_object_ref: pod.map(|pod| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.to_owned()),
                    uid: None,
                }),
                expiration_seconds: Some(3600),
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        made.status.map(|status| status.token).context("no token")
    }

    /// A pod's status is not taken with the pod.
    async fn write_status(&self, api: &Api<DynamicObject>, object: &Value) -> Result<()> {
        let Some(status) = object.get("status").filter(|_| object["kind"] == "Pod") else {
            return Ok(());
        };
        let status = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        api.patch_status(name(object)?, &params, &status)
            .await
            .with_context(|| described(object))?;
        Ok(())
    }
}

fn name(object: &Value) -> Result<&str> {
    object["metadata"]["name"].as_str().with_context(|| format!("no metadata.name: {object}"))
}

fn described(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!(
        "{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}
