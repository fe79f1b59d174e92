//! Reads the bookshop's manifests, as far as the test cluster has to make what they say.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_tests::{NamespaceSpec, PodSpec, ServiceSpec};

/// The bookshop.
#[derive(Default)]
pub struct Shop {
    /// Namespaces with their labels.
    pub namespaces: Vec<NamespaceSpec>,
    /// Pods, with the port that each serves.
    pub pods: Vec<(PodSpec, Option<u16>)>,
    /// Services.
    pub services: Vec<ServiceSpec>,
    /// Files that are the mesh's to read, as they are.
    pub policies: Vec<PathBuf>,
}

/// The manifests of a folder, in the order of their names.
pub fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

impl Shop {
    /// Reads every manifest of a folder, in the order of their names.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut shop = Self::default();
        for file in manifests(folder)? {
            shop.read_file(&file).with_context(|| file.display().to_string())?;
        }
        Ok(shop)
    }

    fn read_file(&mut self, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file)?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let mut for_the_mesh = false;
        for document in documents {
            match document["kind"].as_str() {
                Some("Namespace") => self.namespaces.push(namespace(&document)?),
                Some("Pod") => self.pods.push(pod(&document)?),
                Some("Service") => self.services.push(service(&document, &self.pods)?),
                // The cluster declares the accounts of its pods by itself.
                Some("ServiceAccount") => {}
                Some(_) => for_the_mesh = true,
                None => bail!("a document without kind"),
            }
        }
        if for_the_mesh {
            self.policies.push(file.to_path_buf());
        }
        Ok(())
    }
}

fn namespace(document: &Value) -> Result<NamespaceSpec> {
    let labels = labels(&document["metadata"]["labels"]);
    let spec = NamespaceSpec::new(text(document, "/metadata/name")?);
    Ok(labels.into_iter().fold(spec, |spec, (key, value)| spec.label(key, value)))
}

fn pod(document: &Value) -> Result<(PodSpec, Option<u16>)> {
    let mut spec = PodSpec::new(
        text(document, "/metadata/namespace")?,
        text(document, "/metadata/name")?,
        text(document, "/spec/nodeName")?,
    );
    for (key, value) in labels(&document["metadata"]["labels"]) {
        spec = spec.label(key, value);
    }
    for (key, value) in labels(&document["metadata"]["annotations"]) {
        spec = spec.annotation(key, value);
    }
    if let Some(account) = document["spec"]["serviceAccountName"].as_str() {
        spec = spec.service_account(account);
    }
    let mut served = None;
    for port in document["spec"]["containers"][0]["ports"].as_array().into_iter().flatten() {
        let number = number(&port["containerPort"])?;
        spec = spec.port(port["name"].as_str().unwrap_or_default(), number);
        served = served.or(Some(number));
    }
    Ok((spec, served))
}

/// A service; a named port of its pods becomes a number.
fn service(document: &Value, pods: &[(PodSpec, Option<u16>)]) -> Result<ServiceSpec> {
    let (namespace, name) =
        (text(document, "/metadata/namespace")?, text(document, "/metadata/name")?);
    let mut spec = ServiceSpec::new(namespace, name);
    for (key, value) in labels(&document["spec"]["selector"]) {
        spec = spec.selector(key, value);
    }
    for port in document["spec"]["ports"].as_array().into_iter().flatten() {
        let outer = number(&port["port"])?;
        let inner = match &port["targetPort"] {
            Value::Number(_) => number(&port["targetPort"])?,
            Value::String(_) => {
                let key = format!("{namespace}/{name}");
                let served = pods.iter().find(|(pod, _)| pod.key() == key);
                served
                    .and_then(|(_, port)| *port)
                    .with_context(|| format!("service {key}: no pod of its name serves"))?
            }
            _ => outer,
        };
        spec = spec.port(outer, inner);
    }
    Ok(spec)
}

fn labels(value: &Value) -> Vec<(String, String)> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn text<'a>(document: &'a Value, pointer: &str) -> Result<&'a str> {
    let value = document.pointer(pointer).and_then(Value::as_str);
    value.with_context(|| format!("{} has no {pointer}", document["kind"]))
}

fn number(value: &Value) -> Result<u16> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number.with_context(|| format!("{value} is no port"))
}
