//! The eBPF object that the agent carries inside itself.

use std::collections::BTreeMap;

use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Object};
use weft_common::LAYOUT_VERSION;

use super::OpenError;

/// The ELF file.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_EMBEDDED_OBJECT"));

/// The map of log records that aya-log makes; it belongs to one agent, and is not pinned.
pub(super) const LOG_MAP: &str = "AYA_LOGS";
/// The map of the trial of acceleration, which is not pinned.
pub(super) const TRIAL_MAP: &str = "TRIAL";

/// What is known of a map before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub flags: u32,
}

/// The maps of the object that are kept when an agent ends, by name, with their sizes unless the
/// loader is told otherwise.
pub(super) fn kept_maps() -> Result<BTreeMap<String, (MapShape, u32)>, OpenError> {
    let object = Object::parse(OBJECT).map_err(|error| OpenError::Object(error.to_string()))?;
    Ok(object
        .maps
        .iter()
        .filter(|(name, map)| {
            matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps)
                && name.as_str() != LOG_MAP
                && name.as_str() != TRIAL_MAP
        })
        .map(|(name, map)| {
            let ring = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
            let shape = MapShape {
                kind: map.map_type(),
                key_size: map.key_size(),
                // The loader sets it to 0.
                value_size: if ring { 0 } else { map.value_size() },
                flags: map.map_flags(),
            };
            (name.clone(), (shape, map.max_entries()))
        })
        .collect())
}

/// The name of the layout: the version that people count, and a hash of the maps' shapes, so
/// that maps are never adopted by an agent that reads them differently. Sizes may differ.
pub(super) fn layout(maps: &BTreeMap<String, (MapShape, u32)>) -> String {
    let maps: Vec<_> = maps.iter().map(|(name, (shape, _))| (name, shape)).collect();
    // FNV-1a: the standard library's hashes may differ from one compiler to the next.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in format!("{maps:?}").bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("layout-{LAYOUT_VERSION}-{:08x}", hash as u32)
}
