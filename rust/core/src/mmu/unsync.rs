//! Letting a guest table be written without traps: the unsync rules.
//!
//! KVM: `mmu_try_to_unsync_pages`, `kvm_mmu_mark_parents_unsync` (C.5, D.1).

use super::{MmuLocked, set_spte::Maker};
use crate::{
    addr::{Gfn, SpId, SpteRef},
    config::Mutant,
    shadow::publish::WritePermit,
    trace::TraceKind,
};

/// Whether a frame may be mapped writable.
pub(super) enum WriteVerdict {
    /// Yes: every shadow page of the frame is marked unsync up to its roots, or there is none.
    Granted(WritePermit<'static>),
    /// No: it is a guest table that must stay write-protected.
    Refused,
}

impl WriteVerdict {
    /// The verdict for an entry that is writable now: its frame was granted then, and nothing took it back.
    pub(super) fn already_writable() -> Self {
        WriteVerdict::Granted(WritePermit::granted())
    }
}

impl MmuLocked<'_> {
    /// Marks the shadow pages of `gfn` unsync so that it can be mapped writable, or refuses.
    #[inline]
    pub(super) fn try_to_unsync(&mut self, gfn: Gfn, maker: Maker) -> WriteVerdict {
        if self.state.pages.is_unshadowed(gfn) {
            return WriteVerdict::Granted(WritePermit::granted());
        }
        let pages = self.state.pages.valid_indirect(gfn);
        // Tracked: an upper-level table always traps (E134), so that only level-1 pages go unsync.
        if pages.iter().any(|&sp| !self.state.pages.page(sp).role.level().is_last()) {
            return WriteVerdict::Refused;
        }
        for &sp in &pages {
            if maker == Maker::Sync && !self.shared.mutated(Mutant::SyncUnsyncs) {
                return WriteVerdict::Refused;
            }
            if self.shared.arena.header(sp).sync_state().is_marked() {
                continue;
            }
            // Since 5.16 a prefetch does not unsync (E137); before, it did.
            if maker == Maker::Prefetch && self.shared.config.policy.is_lru() {
                return WriteVerdict::Refused;
            }
            self.unsync_page(sp);
        }
        WriteVerdict::Granted(WritePermit::granted())
    }

    /// Marks one level-1 page and its ancestors.
    fn unsync_page(&mut self, sp: SpId) {
        self.trace_page(TraceKind::UnsyncPage, sp, 0);
        self.cx.stats.counters.mmu_unsync = self.cx.stats.counters.mmu_unsync.wrapping_add(1);
        self.cx.stats.unsync_marks += 1;
        let shared = self.shared;
        shared.arena.header(sp).sync_state().mark_unsync(|| self.mark_parents_unsync(sp));
    }

    fn mark_parents_unsync(&mut self, sp: SpId) {
        for number in 0.. {
            let Some(&parent) = self.state.pages.page(sp).parents.get(number) else { break };
            self.mark_unsync_child(parent);
        }
    }

    /// Marks that the child at `at` is, or leads to, an unsync page. A set bit, or a count that was not zero, implies
    /// that all ancestors are marked already.
    pub(super) fn mark_unsync_child(&mut self, at: SpteRef) {
        if self.state.pages.page_mut(at.sp).unsync_bitmap.set(at.at())
            && self.shared.arena.header(at.sp).sync_state().add_unsync_child() == 0
            && !self.shared.mutated(Mutant::MarkStopsEarly)
        {
            self.mark_parents_unsync(at.sp);
        }
    }

    /// Clears the mark of the child at `at`; the number of marks that are left.
    pub(super) fn clear_unsync_child(&mut self, at: SpteRef) -> u32 {
        let sync = self.shared.arena.header(at.sp).sync_state();
        if self.state.pages.page_mut(at.sp).unsync_bitmap.clear(at.at()) {
            sync.sub_unsync_child()
        } else {
            sync.children_locked()
        }
    }

    /// Takes the unsync flag off a page, because it is about to be synced or zapped.
    pub(super) fn clear_unsync_page(&mut self, sp: SpId) {
        self.trace_page(TraceKind::SyncPage, sp, 0);
        self.cx.stats.counters.mmu_unsync = self.cx.stats.counters.mmu_unsync.wrapping_sub(1);
        self.shared.arena.header(sp).sync_state().clear_unsync();
    }
}
