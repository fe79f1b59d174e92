//! What Weft has in the kernel, as bpftool sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_tests::KubernetesNode;

/// Where a node's pins are, below its root.
pub const PINS: &str = "sys/fs/bpf/weft";

/// Maps and programs in the kernel, by id.
#[derive(Debug, Default)]
pub struct Held {
    pub maps: BTreeSet<u64>,
    pub programs: BTreeMap<u64, String>,
}

impl Held {
    /// What nodes' pins hold: their maps, and the programs that use them.
    pub fn by<'a>(nodes: impl IntoIterator<Item = &'a KubernetesNode>) -> Result<Self> {
        let mut held = Self::default();
        for node in nodes {
            for map in pinned_maps(node)? {
                let found = bpftool(&["map", "show", "pinned", map.to_str().context("a path")?])?;
                held.maps.extend(found["id"].as_u64());
            }
        }
        for program in bpftool(&["prog", "show"])?.as_array().context("programs")? {
            let mut maps = program["map_ids"].as_array().into_iter().flatten();
            if maps.any(|map| map.as_u64().is_some_and(|map| held.maps.contains(&map))) {
                let name = program["name"].as_str().unwrap_or_default().to_owned();
                held.programs.insert(program["id"].as_u64().context("id")?, name);
            }
        }
        ensure!(!held.maps.is_empty() && !held.programs.is_empty(), "nothing is pinned: {held:?}");
        Ok(held)
    }

    /// What of it is still in the kernel.
    pub fn left(&self) -> Result<Self> {
        let (maps, programs) = (ids(&["map", "show"])?, ids(&["prog", "show"])?);
        let programs = self.programs.iter().filter(|(id, _)| programs.contains(id));
        Ok(Self {
            maps: self.maps.intersection(&maps).copied().collect(),
            programs: programs.map(|(id, name)| (*id, name.clone())).collect(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.programs.is_empty()
    }
}

fn ids(words: &[&str]) -> Result<BTreeSet<u64>> {
    let listed = bpftool(words)?;
    Ok(listed.as_array().into_iter().flatten().filter_map(|one| one["id"].as_u64()).collect())
}

fn bpftool(words: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("--json").args(words).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn pinned_maps(node: &KubernetesNode) -> Result<Vec<PathBuf>> {
    let mut maps = Vec::new();
    for layout in fs::read_dir(node.root()?.join(PINS))? {
        for map in fs::read_dir(layout?.path().join("maps"))? {
            maps.push(map?.path());
        }
    }
    Ok(maps)
}
