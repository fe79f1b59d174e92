use weft_tests::kubernetes::{ApiServer, Objects};

/// A real API server without any node, and its objects. It goes when this is dropped.
pub struct Server {
    pub api: ApiServer,
    pub objects: Objects,
}

impl Server {
    pub async fn start() -> Self {
        let started = tokio::task::spawn_blocking(ApiServer::start).await.unwrap();
        let api = started.unwrap_or_else(|error| panic!("{error:?}"));
        let objects = Objects::new(api.kubeconfig()).await.unwrap();
        Self { api, objects }
    }
}
