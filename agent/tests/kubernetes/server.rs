//! An API server, and objects in it.

use std::path::{Path, PathBuf};

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::Value;

/// Requests that are under way at once.
const AT_ONCE: usize = 48;

/// A real API server without any node. It goes when this is dropped.
pub struct Server {
    kubeconfig: PathBuf,
    pub client: Client,
}

impl Server {
    pub async fn start() -> Self {
        let kubeconfig: PathBuf = std::env::var_os("WEFT_TEST_KUBECONFIG").unwrap().into();
        let read = Kubeconfig::read_from(&kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(read, &options).await.unwrap();
        Self { kubeconfig, client: Client::try_from(config).unwrap() }
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let api_version = text(&object["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
        let resource = ApiResource::from_gvk(&kind);
        match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Makes an object with its status.
    pub async fn create(&self, object: &Value) {
        let api = self.api(object);
        let dynamic: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let made = api.create(&PostParams::default(), &dynamic).await;
        let made = made.unwrap_or_else(|error| panic!("{error}: {object}"));
        if object.get("status").is_some_and(|_| object["kind"] == "Pod") {
            let status = Patch::Merge(serde_json::json!({"status": object["status"]}));
            let name = made.metadata.name.unwrap();
            api.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
        }
    }

    /// Makes many at once.
    pub async fn create_all(&self, objects: Vec<Value>) {
        futures::stream::iter(objects)
            .map(|object| async move {
                self.create(&object).await;
                Ok::<(), ()>(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await
            .unwrap();
    }

    /// Changes an object's spec.
    pub async fn change(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let patch = Patch::Merge(serde_json::json!({"spec": object["spec"]}));
        self.api(object).patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    pub async fn delete(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let now = DeleteParams::default().grace_period(0);
        self.api(object).delete(name, &now).await.unwrap();
    }
}
