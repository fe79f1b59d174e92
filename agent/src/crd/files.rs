//! The definitions as files of the chart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::{compat, own, yaml};

/// The files below the chart's folder, with their content: `crds/` is installed with the chart,
/// `compat-crds/` if the values ask for it.
///
/// # Errors
/// Where a definition cannot be written as YAML.
pub fn files() -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let of = |folder: &'static str| {
        move |definition: &CustomResourceDefinition| {
            let name = definition.metadata.name.clone().unwrap_or_default();
            let path = Path::new(folder).join(format!("{name}.yaml"));
            anyhow::Ok((path, yaml(definition)?))
        }
    };
    let (own, compat) = (own(), compat());
    own.iter().map(of("crds")).chain(compat.iter().map(of("compat-crds"))).collect()
}

/// Writes them, and removes YAML files beside them that are none of them.
///
/// # Errors
/// Where the folder cannot be written to.
pub fn write(chart: &Path) -> anyhow::Result<()> {
    let files = files()?;
    for folder in ["crds", "compat-crds"] {
        let folder = chart.join(folder);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let known = path.strip_prefix(chart).is_ok_and(|path| files.contains_key(path));
            if path.extension().is_some_and(|extension| extension == "yaml") && !known {
                fs::remove_file(&path)?;
            }
        }
    }
    for (path, text) in files {
        let path = chart.join(path);
        if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
            fs::write(path, text)?;
        }
    }
    Ok(())
}
