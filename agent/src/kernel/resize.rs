//! Maps that are adopted, but shall have another size than they have.
//!
//! The size of a map is fixed when it is made. For the tables that only the agent writes, a new
//! map is made beside the pinned one and filled from it; the programs are loaded with it, and
//! when they have taken the place of the earlier ones, its pin takes the place of the old one.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use aya::maps::MapInfo;

use super::error::OpenError;
use super::pins::Pins;
use super::settings::MapSizes;
use super::tables::KernelTables;
use super::{map_error, system};

/// The maps that are made anew, with another size.
#[derive(Debug, Default)]
pub(super) struct Resized(Vec<&'static str>);

impl Resized {
    /// Compares what is pinned with what is asked for. `own` are the sizes of the object's maps.
    pub(super) fn plan(
        pins: &Pins,
        own: &BTreeMap<String, u32>,
        asked: &MapSizes,
    ) -> Result<Self, OpenError> {
        let mut resized = Vec::new();
        for (name, own) in own {
            let size = asked.get(name).unwrap_or(*own);
            let path = pins.map(name);
            if !path.exists() {
                continue;
            }
            let failed = map_error(name);
            let info = MapInfo::from_pin(&path).map_err(&failed)?;
            let now = info.max_entries();
            if now == size {
                continue;
            }
            let Some(name) = KernelTables::NAMES.iter().find(|table| *table == name) else {
                if asked.get(name).is_some() {
                    tracing::warn!(
                        map = name,
                        size = now,
                        asked = size,
                        "a map that the programs write keeps its size until its pins are removed"
                    );
                }
                continue;
            };
            let entries = info
                .fd()
                .map_err(io::Error::other)
                .and_then(|map| system::count_keys(&map, info.key_size(), now))
                .map_err(|source| OpenError::Pin { path: path.clone(), source })?;
            if entries > size {
                tracing::warn!(
                    map = name,
                    size = now,
                    asked = size,
                    entries,
                    "a map keeps its size: it has more entries than it shall hold"
                );
                continue;
            }
            remove_if_there(pins, name)?;
            resized.push(*name);
        }
        Ok(Self(resized))
    }

    /// Whether the map is made anew.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.0.contains(&name)
    }

    /// Fills the new maps from the old ones.
    pub(super) fn fill(&self, pins: &Pins, tables: &mut KernelTables) -> Result<(), OpenError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let old = KernelTables::new(|name| super::open_pinned(name, &pins.map(name)))?;
        tables.copy_from(&old).map_err(|error| OpenError::Resize(Box::new(error)))
    }

    /// Puts the pins of the new maps in the places of the old ones.
    pub(super) fn finish(&self, pins: &Pins) -> Result<(), OpenError> {
        for name in &self.0 {
            let path = pins.map_aside(name);
            fs::rename(&path, pins.map(name)).map_err(|source| OpenError::Pin { path, source })?;
            tracing::info!(map = name, "a map was made anew with another size");
        }
        Ok(())
    }
}

fn remove_if_there(pins: &Pins, name: &str) -> Result<(), OpenError> {
    let path = pins.map_aside(name);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::Pin { path, source })
        }
        _ => Ok(()),
    }
}
