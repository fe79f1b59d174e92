//! Numbers for contents. A number is never given twice, so whoever still holds one from an
//! earlier compilation holds the meaning that it had.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Where numbers come from; all kinds share them.
#[derive(Debug)]
pub(super) struct Ids {
    next: u32,
}

impl Ids {
    /// 0 stands for "none" everywhere.
    pub(super) fn starting_at(first: u32) -> Self {
        Self { next: first.max(1) }
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }

    pub(super) fn take(&mut self) -> u32 {
        let id = self.next;
        self.next = self.next.saturating_add(1);
        id
    }
}

/// Counts compilations: what was used in neither this nor the last one is forgotten.
pub(super) type Epoch = u64;

/// Contents and their numbers.
#[derive(Debug)]
pub(super) struct Interned<K> {
    by_content: HashMap<Arc<K>, u32>,
    by_id: HashMap<u32, (Arc<K>, Epoch)>,
}

impl<K> Default for Interned<K> {
    fn default() -> Self {
        Self { by_content: HashMap::new(), by_id: HashMap::new() }
    }
}

impl<K: Hash + Eq> Interned<K> {
    /// The number of a content, and whether it is new.
    pub(super) fn intern(&mut self, content: K, ids: &mut Ids, epoch: Epoch) -> (u32, bool) {
        if let Some(id) = self.by_content.get(&content) {
            if let Some((_, seen)) = self.by_id.get_mut(id) {
                *seen = epoch;
            }
            return (*id, false);
        }
        let content = Arc::new(content);
        let id = ids.take();
        self.by_content.insert(content.clone(), id);
        self.by_id.insert(id, (content, epoch));
        (id, true)
    }

    /// Takes over a content that has had its number since before this compiler.
    pub(super) fn adopt(&mut self, content: K, id: u32, epoch: Epoch) {
        let content = Arc::new(content);
        self.by_content.insert(content.clone(), id);
        self.by_id.insert(id, (content, epoch));
    }

    /// What a number stands for. It counts as used.
    pub(super) fn content(&mut self, id: u32, epoch: Epoch) -> Option<&Arc<K>> {
        let (content, seen) = self.by_id.get_mut(&id)?;
        *seen = epoch;
        Some(content)
    }

    /// All that is remembered.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Arc<K>)> {
        self.by_id.iter().map(|(id, (content, _))| (*id, content))
    }

    /// Forgets what was last used before `oldest`, and says which numbers those were.
    pub(super) fn forget_before(&mut self, oldest: Epoch) -> Vec<u32> {
        let gone: Vec<u32> =
            self.by_id.iter().filter(|(_, (_, seen))| *seen < oldest).map(|(id, _)| *id).collect();
        for id in &gone {
            if let Some((content, _)) = self.by_id.remove(id) {
                self.by_content.remove(&content);
            }
        }
        gone
    }
}
