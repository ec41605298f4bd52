//! The set of shadow pages: lookup by gfn, allocation of numbers, the zap list.
//!
//! KVM: `mmu_page_hash`, `active_mmu_pages`, `n_used_mmu_pages` (C.3, C.7).

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{
    page::{Life, SpLocked},
    root_refs::Fate,
};
use crate::{
    addr::{Gfn, SpId},
    role::PageRole,
};

/// All shadow pages, by number and by gfn.
#[derive(Debug, Default)]
pub(crate) struct PageStore {
    pages: Vec<SpLocked>,
    /// Active pages of each gfn, newest last.
    by_gfn: FxHashMap<u64, SmallVec<[SpId; 3]>>,
    /// Numbers to use again; the one freed last goes first.
    free: Vec<SpId>,
    /// Zapped pages that the next commit frees, in that order.
    zapped: Vec<SpId>,
    live: u64,
    peak: u64,
    /// Pages that are counted: active, or pinned though invalid (I7).
    used: u64,
}

impl PageStore {
    /// The number that the next allocation uses.
    pub(crate) fn next_id(&self) -> SpId {
        self.free.last().copied().unwrap_or(SpId::new(self.pages.len() as u32))
    }

    /// Allocates that number for a page of (`gfn`, `role`).
    pub(crate) fn allocate(&mut self, gfn: Gfn, role: PageRole) -> SpId {
        let id = self.next_id();
        if self.free.pop().is_none() {
            self.pages.push(SpLocked::unused());
        }
        self.pages[id.at()].begin(gfn, role);
        self.by_gfn.entry(gfn.get()).or_default().push(id);
        self.live += 1;
        self.used += 1;
        self.peak = self.peak.max(self.live);
        id
    }

    /// The locked half of a page.
    #[inline]
    pub(crate) fn page(&self, id: SpId) -> &SpLocked {
        &self.pages[id.at()]
    }

    /// The locked half of a page.
    #[inline]
    pub(crate) fn page_mut(&mut self, id: SpId) -> &mut SpLocked {
        &mut self.pages[id.at()]
    }

    /// The valid pages of a gfn, newest first, as they are now.
    #[inline]
    pub(crate) fn valid(&self, gfn: Gfn) -> SmallVec<[SpId; 3]> {
        match self.by_gfn.get(&gfn.get()) {
            Some(ids) => ids.iter().rev().copied().collect(),
            None => SmallVec::new(),
        }
    }

    /// Whether a gfn has no valid page at all, as almost every frame that a fault maps.
    #[inline]
    pub(crate) fn is_unshadowed(&self, gfn: Gfn) -> bool {
        !self.by_gfn.contains_key(&gfn.get())
    }

    /// The valid pages of a gfn that shadow a guest table, newest first.
    #[inline]
    pub(crate) fn valid_indirect(&self, gfn: Gfn) -> SmallVec<[SpId; 3]> {
        match self.by_gfn.get(&gfn.get()) {
            Some(ids) => ids.iter().rev().copied().filter(|&id| !self.page(id).role.is_direct()).collect(),
            None => SmallVec::new(),
        }
    }

    /// Takes a page out of the lookups: to the zap list, or to stay as a pinned invalid root.
    pub(crate) fn retire(&mut self, id: SpId) {
        let page = &mut self.pages[id.at()];
        if page.life == Life::Active {
            let gfn = page.gfn.get();
            if let Some(ids) = self.by_gfn.get_mut(&gfn) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_gfn.remove(&gfn);
                }
            }
        }
        let page = &mut self.pages[id.at()];
        match page.root_refs.fate() {
            Fate::Pinned => page.life = Life::PinnedInvalid,
            Fate::Free if page.life == Life::Zapped => {}
            Fate::Free => {
                page.life = Life::Zapped;
                self.used -= 1;
                self.zapped.push(id);
            }
        }
    }

    /// Whether a commit has anything to free.
    pub(crate) fn has_zapped(&self) -> bool {
        !self.zapped.is_empty()
    }

    /// Frees everything on the zap list; the caller has flushed.
    pub(crate) fn free_zapped(&mut self) {
        for id in core::mem::take(&mut self.zapped) {
            self.pages[id.at()].life = Life::Free;
            self.live -= 1;
            self.free.push(id);
        }
    }

    /// Pages that have a number: active, pinned invalid, or zapped and not yet freed.
    pub(crate) const fn live(&self) -> u64 {
        self.live
    }

    /// Most pages that were live at once.
    pub(crate) const fn peak(&self) -> u64 {
        self.peak
    }

    /// Numbers that keep an array of recorded translations, in use or not.
    pub(crate) fn recorded(&self) -> u64 {
        self.pages.iter().filter(|page| page.has_recorded()).count() as u64
    }

    /// Pages in use by KVM's count (I7).
    pub(crate) const fn used(&self) -> u64 {
        self.used
    }

    /// The live pages in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SpId, &SpLocked)> {
        self.pages
            .iter()
            .enumerate()
            .filter(|(_, page)| page.life != Life::Free)
            .map(|(at, page)| (SpId::new(at as u32), page))
    }

    /// The pages that lookups of each gfn would see, for the audit.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Gfn, &[SpId])> {
        self.by_gfn.iter().map(|(&gfn, ids)| (Gfn::new(gfn), ids.as_slice()))
    }
}
