//! One table of the compiled mesh in its map: what is in it, and how it is changed.

use std::collections::BTreeMap;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError};

use super::error::{ApplyError, OpenError};

/// `BPF_NOEXIST`
const ONLY_NEW: u64 = 1;

/// How the map is organised. Keys of both are a prefix length (0 in a hash) and the data.
#[derive(Debug)]
enum Entries<K: Pod, V: Pod> {
    Hash(HashMap<MapData, K, V>),
    Trie(LpmTrie<MapData, K, V>),
}

/// A map and a copy of what is in it, by keys (`Key`) that can be ordered.
#[derive(Debug)]
pub(super) struct Table<O, K: Pod, V: Pod> {
    name: &'static str,
    entries: Entries<K, V>,
    capacity: u32,
    to_kernel: fn(&O) -> (u32, K),
    installed: BTreeMap<O, V>,
    /// What the current change has replaced, in order: the value before, if there was one.
    journal: Vec<(O, Option<V>)>,
}

impl<O: Ord + Copy, K: Pod, V: Pod + PartialEq> Table<O, K, V> {
    /// Takes a map, and reads what an earlier agent has left in it.
    pub(super) fn new(
        name: &'static str,
        map: MapData,
        to_kernel: fn(&O) -> (u32, K),
        from_kernel: fn(u32, K) -> O,
    ) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Map { name: name.to_owned(), source: Box::new(source) };
        let capacity = map.info().map_err(failed)?.max_entries();
        let mut installed = BTreeMap::new();
        let entries = match Map::from_map_data(map).map_err(failed)? {
            map @ Map::LpmTrie(_) => {
                let trie: LpmTrie<MapData, K, V> = map.try_into().map_err(failed)?;
                for entry in trie.iter() {
                    let (key, value) = entry.map_err(failed)?;
                    installed.insert(from_kernel(key.prefix_len(), key.data()), value);
                }
                Entries::Trie(trie)
            }
            map => {
                let hash: HashMap<MapData, K, V> = map.try_into().map_err(failed)?;
                for entry in hash.iter() {
                    let (key, value) = entry.map_err(failed)?;
                    installed.insert(from_kernel(0, key), value);
                }
                Entries::Hash(hash)
            }
        };
        Ok(Self { name, entries, capacity, to_kernel, installed, journal: Vec::new() })
    }

    /// The map's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// What is in the map.
    pub(super) fn installed(&self) -> &BTreeMap<O, V> {
        &self.installed
    }

    /// How many entries it may have.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Refuses what does not fit: while a change is made, the map holds old and new entries.
    pub(super) fn check_room(&self, wanted: &BTreeMap<O, V>) -> Result<(), ApplyError> {
        let added = wanted.keys().filter(|key| !self.installed.contains_key(key)).count();
        let needed = self.installed.len() + added;
        if needed > self.capacity as usize { Err(self.full(needed)) } else { Ok(()) }
    }

    fn full(&self, needed: usize) -> ApplyError {
        ApplyError::Full { map: self.name, size: self.capacity, needed }
    }

    /// Writes what is new or changed, the highest keys first (in a trie: the longest prefixes).
    /// Returns how many entries were written.
    pub(super) fn insert_changes(&mut self, wanted: &BTreeMap<O, V>) -> Result<usize, ApplyError> {
        let changes: Vec<(O, V)> = wanted
            .iter()
            .rev()
            .filter(|(key, value)| self.installed.get(key) != Some(value))
            .map(|(key, value)| (*key, *value))
            .collect();
        for (key, value) in &changes {
            self.insert(key, value)?;
        }
        Ok(changes.len())
    }

    /// Deletes what is not wanted any more, the lowest keys first (in a trie: the shortest
    /// prefixes). Returns how many entries went.
    pub(super) fn delete_unwanted(&mut self, wanted: &BTreeMap<O, V>) -> Result<usize, ApplyError> {
        let unwanted: Vec<O> =
            self.installed.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in &unwanted {
            self.remove(key)?;
        }
        Ok(unwanted.len())
    }

    /// Writes one entry.
    pub(super) fn insert(&mut self, key: &O, value: &V) -> Result<(), ApplyError> {
        let (prefix, data) = (self.to_kernel)(key);
        match &mut self.entries {
            Entries::Hash(hash) => hash.insert(data, value, 0),
            Entries::Trie(trie) => trie.insert(&Key::new(prefix, data), value, 0),
        }
        .map_err(|source| self.write_error(source))?;
        let before = self.installed.insert(*key, *value);
        self.journal.push((*key, before));
        Ok(())
    }

    /// Deletes one entry, if it is there.
    pub(super) fn remove(&mut self, key: &O) -> Result<(), ApplyError> {
        let (prefix, data) = (self.to_kernel)(key);
        let removed = match &mut self.entries {
            Entries::Hash(hash) => hash.remove(&data),
            Entries::Trie(trie) => trie.remove(&Key::new(prefix, data)),
        };
        match removed {
            Err(MapError::KeyNotFound) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(source) => return Err(self.write_error(source)),
            Ok(()) => {}
        }
        if let Some(before) = self.installed.remove(key) {
            self.journal.push((*key, Some(before)));
        }
        Ok(())
    }

    /// Forgets what would be needed to undo the change.
    pub(super) fn commit(&mut self) {
        // After a start it is as large as the table.
        self.journal = Vec::new();
    }

    /// Undoes the change, the last write first. What cannot be undone is said.
    pub(super) fn roll_back(&mut self) {
        for (key, before) in std::mem::take(&mut self.journal).into_iter().rev() {
            let undone = match before {
                Some(value) => self.insert(&key, &value),
                None => self.remove(&key),
            };
            if let Err(error) = undone {
                tracing::error!(map = self.name, %error, "cannot undo a failed change");
            }
        }
        self.journal.clear();
    }

    fn write_error(&self, source: MapError) -> ApplyError {
        match errno(&source) {
            // A hash that is full says E2BIG, an LPM trie ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => self.full(self.installed.len() + 1),
            _ => ApplyError::Write { map: self.name, source: Box::new(source) },
        }
    }

    /// Writes an entry unless there is one, whose value then stays.
    pub(super) fn insert_new(&mut self, key: &O, value: &V) -> Result<(), ApplyError> {
        if self.installed.contains_key(key) {
            return Ok(());
        }
        let (prefix, data) = (self.to_kernel)(key);
        let inserted = match &mut self.entries {
            Entries::Hash(hash) => hash.insert(data, value, ONLY_NEW),
            Entries::Trie(trie) => trie.insert(&Key::new(prefix, data), value, ONLY_NEW),
        };
        match inserted {
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            Err(source) => return Err(self.write_error(source)),
            Ok(()) => self.journal.push((*key, None)),
        }
        self.installed.insert(*key, *value);
        Ok(())
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}
