//! Zapping shadow pages and freeing them.
//!
//! KVM: `kvm_mmu_prepare_zap_page`, `kvm_mmu_commit_zap_page` (C.7).

use super::{MmuLocked, Requests};
use crate::{
    addr::{ENTRIES, Gfn, SpId, SpteRef},
    config::Mutant,
    shadow::{page::Life, publish, root_refs::Fate},
    spte::Spte,
    trace::TraceKind,
};

impl MmuLocked<'_> {
    /// Takes a shadow page out of use: unsync descendants, entries, parents, books. It is freed by
    /// [`commit_zap`](Self::commit_zap), or when its last root reference goes (E149).
    pub(crate) fn prepare_zap(&mut self, sp: SpId) {
        if self.state.pages.page(sp).life == Life::Zapped {
            return;
        }
        self.trace_page(TraceKind::PrepareZapPage, sp, 0);
        self.cx.stats.counters.mmu_shadow_zapped += 1;
        self.zap_unsync_children(sp);
        for index in 0..ENTRIES {
            self.zap_spte(SpteRef::new(sp, index));
        }
        // The bits in the parents stay; a later walk clears them.
        for parent in core::mem::take(&mut self.state.pages.page_mut(sp).parents) {
            publish::withdraw(&self.shared.arena.sptes(parent.sp)[parent.at()], Spte::EMPTY.raw());
        }
        let (gfn, role) = (self.state.pages.page(sp).gfn, self.state.pages.page(sp).role);
        let was_valid = !role.is_invalid();
        if was_valid && !role.is_direct() {
            self.unaccount(gfn, sp);
        }
        if self.shared.arena.header(sp).sync_state().is_unsync_locked() {
            self.clear_unsync_page(sp);
        }
        self.state.pages.retire(sp);
        self.state.pages.page_mut(sp).role = role.invalidated();
        self.shared.arena.header(sp).set_role(role.invalidated());
        let pinned = self.state.pages.page(sp).root_refs.fate() == Fate::Pinned;
        if was_valid && pinned && !self.shared.mutated(Mutant::ObsoleteUnannounced) {
            // The role first, then the request that makes vCPUs look at it (D.3, E151).
            self.shared.request_all(Requests::FREE_OBSOLETE_ROOTS);
        }
    }

    fn zap_unsync_children(&mut self, sp: SpId) {
        loop {
            let batch = self.unsync_walk(sp);
            if batch.is_empty() {
                return;
            }
            for (leaf, path) in &batch.leaves {
                self.prepare_zap(*leaf);
                self.clear_path(path);
            }
        }
    }

    /// Takes an indirect page out of the counts of shadowed frames. KVM: `unaccount_shadowed`.
    fn unaccount(&mut self, gfn: Gfn, sp: SpId) {
        self.shared.indirect_shadow_pages.unaccount();
        if !self.state.pages.page(sp).role.level().is_last()
            && let Some(slot) = self.shared.memory.slot(gfn)
        {
            slot.adjust_write_track(gfn, -1);
        }
    }

    /// Frees the zapped pages after a flush that waits for every guest access that might still use them.
    pub(crate) fn commit_zap(&mut self) {
        if self.state.pages.has_zapped() {
            self.shared.flush_remote(self.cx);
            self.state.pages.free_zapped();
        }
    }

    /// Zaps every valid indirect page of a frame (KVM: `kvm_mmu_unprotect_page`); where there are only direct ones, whatever maps
    /// it (`kvm_unmap_gfn_range`).
    pub(crate) fn zap_gfn(&mut self, gfn: Gfn) {
        if self.shared.config.mmu.is_tdp() {
            return self.unmap_gfn(gfn);
        }
        for sp in self.state.pages.valid_indirect(gfn) {
            self.prepare_zap(sp);
        }
        self.commit_zap();
    }

    /// Drops every leaf that maps a frame, by its reverse map.
    fn unmap_gfn(&mut self, gfn: Gfn) {
        let mut unmapped = false;
        while let Some(at) = self.state.rmaps.get(gfn, 0) {
            self.drop_leaf(at);
            unmapped = true;
        }
        if unmapped {
            self.shared.flush_remote(self.cx);
        }
    }
}
