//! Bringing unsync shadow pages in line with the guest's tables.
//!
//! KVM: `mmu_unsync_walk`, `mmu_sync_children`, `kvm_sync_page`, `sync_spte` (C.5, D.2).

use smallvec::SmallVec;

use super::{
    MmuLocked,
    set_spte::{FlushNeeded, Leaf, Maker},
};
use crate::{
    access::{Access, ProtectionKey},
    addr::{Gpa, PHYS_MASK, SpId, SpteRef},
    config::Mutant,
    paging::{PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, entry_access},
};

/// Most records of one unsync walk. KVM: `KVM_PAGE_ARRAY_NR`.
const BATCH: usize = 16;

/// Entries from the page that the walk started at down to an unsync leaf.
type Path = SmallVec<[SpteRef; 5]>;

/// The unsync level-1 pages that one walk found.
#[derive(Default)]
pub(super) struct UnsyncBatch {
    /// Each leaf with the path that led to it.
    pub(super) leaves: SmallVec<[(SpId, Path); BATCH]>,
    records: usize,
    full: bool,
}

impl UnsyncBatch {
    /// Whether there is work, or may be more.
    pub(super) fn is_empty(&self) -> bool {
        self.leaves.is_empty() && !self.full
    }

    fn count(&mut self) {
        self.records += 1;
        self.full = self.records == BATCH;
    }
}

/// A shadow page could not be synced and was zapped.
#[derive(Debug)]
pub(super) struct SyncFailed;

impl MmuLocked<'_> {
    /// Finds unsync pages below `parent`, clearing stale marks on the way.
    pub(super) fn unsync_walk(&mut self, parent: SpId) -> UnsyncBatch {
        let mut batch = UnsyncBatch::default();
        if self.shared.arena.header(parent).sync_state().children_locked() != 0 {
            batch.count();
            self.unsync_walk_below(parent, &mut Path::new(), &mut batch);
        }
        batch
    }

    /// Walks the marked entries of `sp`; how many unsync leaves lead from it, duplicates included.
    fn unsync_walk_below(&mut self, sp: SpId, path: &mut Path, batch: &mut UnsyncBatch) -> usize {
        let mut found = 0;
        let mut next = 0;
        while let Some(index) = self.state.pages.page(sp).unsync_bitmap.next(next) {
            next = index + 1;
            let at = SpteRef::new(sp, index);
            let Some(child) = self.spte(at).child() else {
                self.clear_unsync_child(at);
                continue;
            };
            let sync = self.shared.arena.header(child).sync_state();
            path.push(at);
            if sync.children_locked() != 0 {
                batch.count();
                if !batch.full {
                    let below = self.unsync_walk_below(child, path, batch);
                    found += below;
                    if below == 0 && !batch.full {
                        self.clear_unsync_child(at);
                    }
                }
            } else if sync.is_unsync_locked() {
                found += 1;
                if batch.leaves.iter().all(|(leaf, _)| *leaf != child) {
                    batch.leaves.push((child, path.clone()));
                    batch.count();
                }
            } else {
                self.clear_unsync_child(at);
            }
            path.pop();
            if batch.full {
                break;
            }
        }
        found
    }

    /// Clears the marks along a leaf's path, from the leaf upwards, while nothing else is marked there.
    pub(super) fn clear_path(&mut self, path: &[SpteRef]) {
        for &at in path.iter().rev() {
            if self.clear_unsync_child(at) != 0 {
                break;
            }
        }
    }

    /// Syncs every unsync page below `parent`. KVM: `mmu_sync_children`.
    ///
    /// Write-protect first, flush and wait, only then read the guest's tables, and clear the parents' counts last, so
    /// that a lock-free test that finds the root clean finds synced entries below it (E140, D.2).
    pub(crate) fn sync_children(&mut self, parent: SpId) {
        loop {
            let batch = self.unsync_walk(parent);
            if batch.is_empty() {
                return;
            }
            let mut flush = false;
            for (leaf, _) in &batch.leaves {
                let gfn = self.state.pages.page(*leaf).gfn;
                if !self.shared.mutated(Mutant::SyncWithoutProtect) {
                    flush |= self.write_protect_gfn(gfn).0;
                }
            }
            if flush && !self.shared.mutated(Mutant::SyncWithoutFlush) {
                self.shared.flush_remote(self.cx);
            }
            let mut changed = false;
            for (leaf, path) in &batch.leaves {
                self.clear_unsync_page(*leaf);
                changed |= matches!(self.sync_page(*leaf), Ok(FlushNeeded(true)));
                self.clear_path(path);
            }
            self.flush_or_commit(changed);
        }
    }

    /// Frees what was zapped, which flushes; else flushes if asked to.
    pub(crate) fn flush_or_commit(&mut self, flush: bool) {
        if self.state.pages.has_zapped() {
            self.commit_zap();
        } else if flush {
            self.shared.flush_remote(self.cx);
        }
    }

    /// Syncs the present entries of one level-1 page. The unsync flag is the caller's business.
    ///
    /// # Errors
    /// The page is of another mode than this vCPU's and was zapped (F-37).
    pub(super) fn sync_page(&mut self, sp: SpId) -> Result<FlushNeeded, SyncFailed> {
        let role = self.state.pages.page(sp).role;
        if !self.cx.paging.as_ref().is_some_and(|paging| paging.role.may_sync(role)) {
            self.prepare_zap(sp);
            return Err(SyncFailed);
        }
        let mut flush = false;
        let mut touched = false;
        if !self.shared.mutated(Mutant::SkipSync) {
            for index in 0..crate::addr::ENTRIES {
                let at = SpteRef::new(sp, index);
                let before = self.spte(at);
                if before.is_present() {
                    flush |= self.sync_spte(at).0;
                    touched |= self.spte(at) != before;
                }
            }
        }
        self.cx.stats.sync_pages += 1;
        self.cx.stats.sync_pages_unchanged += u64::from(!touched);
        Ok(FlushNeeded(flush))
    }

    /// Reads the guest entry behind a level-1 entry; `None` if no leaf may be made of it.
    pub(super) fn guest_leaf(&self, at: SpteRef, mutant: Mutant) -> Option<Leaf> {
        let page = self.state.pages.page(at.sp);
        let level = page.role.level();
        let pte = self.view().shadowed_entry(at)?;
        let reserved = self.cx.paging.as_ref().is_some_and(|paging| paging.reserved.violates(pte, level));
        if pte & PTE_PRESENT == 0 || pte & PTE_ACCESSED == 0 || reserved {
            return None;
        }
        let mut access = page.role.access() & entry_access(pte);
        if pte & PTE_DIRTY == 0 && !self.shared.mutated(mutant) {
            access.remove(Access::WRITE);
        }
        let keyed = self.cx.paging.as_ref().is_some_and(|paging| paging.keyed);
        let key = if keyed { ProtectionKey::of_entry(pte) } else { ProtectionKey::NONE };
        Some(Leaf { gfn: Gpa::new(pte & PHYS_MASK).gfn(), access, key })
    }

    /// Syncs one present entry. KVM: `sync_spte` (E139).
    pub(super) fn sync_spte(&mut self, at: SpteRef) -> FlushNeeded {
        let page = self.state.pages.page(at.sp);
        let (gfn, recorded) = (page.entry_gfn(at.at()), page.entry_access(at.at()));
        match self.guest_leaf(at, Mutant::SyncKeepsWriteWhenClean) {
            Some(leaf) if leaf.gfn == gfn => {
                let old = self.spte(at);
                if leaf.access == recorded && leaf.key == old.key() {
                    return FlushNeeded(false);
                }
                self.state.pages.page_mut(at.sp).record(at.at(), gfn, leaf.access);
                let made = self.make_spte(leaf, old, Maker::Sync);
                if Self::differs(&made, old) { self.store_leaf(at, old, &made) } else { FlushNeeded(false) }
            }
            _ => {
                self.drop_leaf(at);
                FlushNeeded(true)
            }
        }
    }
}
