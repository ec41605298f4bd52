//! What may be turned over while the `mmu_lock` is shared: looking, and nothing else.
//!
//! Under a reader-writer lock, what seems to have nothing to do takes the lock shared and makes sure (docs/machine.md, 12).

use super::{MmuCx, MmuState, Shared};
use crate::{
    access::Access,
    addr::{Gfn, Gva, Level, SpId, SpteRef},
    paging::{GuestWalk, format::read_as},
    role::Directness,
    shadow::publish,
    spte::{Spte, Young},
    stats::LockReason,
};

/// The locked state, held by whoever lends it, shared or alone.
#[derive(Clone, Copy)]
pub(crate) struct MmuView<'a> {
    pub(super) shared: &'a Shared,
    pub(super) state: &'a MmuState,
}

impl Shared {
    /// Whether a sync or an INVLPG under `root` has nothing to do, made sure of under the shared lock. False, and no lock
    /// taken, if the root is marked or the lock has no readers.
    pub(crate) fn is_clean_for_sure(&self, cx: &mut MmuCx, root: SpId, reason: LockReason) -> bool {
        self.config.lock.has_readers()
            && !self.arena.header(root).sync_state().observe()
            && !self.lock_shared(cx, reason).view().is_marked(root)
    }

    /// Whether an emulated write to this frame has no entry to drop, made sure of under the shared lock. False, and no lock
    /// taken, if the frame is tracked or the lock has no readers.
    pub(super) fn is_unshadowed_for_sure(&self, cx: &mut MmuCx, gfn: Gfn) -> bool {
        self.config.lock.has_readers()
            && !self.memory.slot(gfn).is_some_and(|slot| slot.is_write_tracked(gfn))
            && self.lock_shared(cx, LockReason::PteWrite).view().state.pages.valid_indirect(gfn).is_empty()
    }
}

impl MmuView<'_> {
    /// The entry as it is.
    pub(super) fn spte(&self, at: SpteRef) -> Spte {
        Spte::from_raw(publish::load_locked(&self.shared.arena.sptes(at.sp)[at.at()]))
    }

    /// The guest entry that this entry is made from, as it is now.
    pub(super) fn shadowed_entry(&self, at: SpteRef) -> Option<u64> {
        let page = self.state.pages.page(at.sp);
        let gpa = page.role.entry_gpa(page.gfn, at.at());
        read_as(&self.shared.memory, page.role.has_four_byte_entries(), gpa)
    }

    /// Whether an unsync page is below, or the page is one.
    fn is_marked(&self, sp: SpId) -> bool {
        let sync = self.shared.arena.header(sp).sync_state();
        sync.is_unsync_locked() || sync.children_locked() != 0
    }

    /// Whether the fault of this walk has nothing to change: another vCPU built the same. The pages on the way count as used.
    pub(crate) fn is_mapped(&self, top: Option<SpId>, walk: &GuestWalk, gva: Gva) -> bool {
        top.and_then(|top| self.path(top, walk, gva)).is_some_and(|leaf| self.is_leaf_of(leaf, walk))
    }

    /// The last entry of the path that a fault would build, if all of it is there and the guest's entries are those walked.
    fn path(&self, top: SpId, walk: &GuestWalk, gva: Gva) -> Option<SpteRef> {
        let mut sp = top;
        let mut level = self.state.pages.page(sp).role.level();
        if self.state.pages.page(sp).role.is_invalid() || !self.is_unchanged(walk, level, gva) {
            return None;
        }
        while !level.is_last() {
            self.shared.arena.header(sp).clear_flooding();
            let at = SpteRef::new(sp, level.index(gva));
            let (below, guest_table) = (level.down(), level > walk.leaf_level);
            let (gfn, access, direct) = if guest_table {
                (walk.table_gfn[below.at()], walk.parent_access[below.at()], Directness::Indirect)
            } else {
                (walk.gfn.round_down(level), walk.access, Directness::Direct(walk.key))
            };
            let child = self.spte(at).child()?;
            let page = self.state.pages.page(child);
            let same = page.gfn == gfn && page.role == self.state.pages.page(sp).role.child(access, direct, at.at());
            if !same || (guest_table && !self.is_unchanged(walk, below, gva)) {
                return None;
            }
            (sp, level) = (child, below);
        }
        Some(SpteRef::new(sp, Level::PT.index(gva)))
    }

    fn is_unchanged(&self, walk: &GuestWalk, level: Level, gva: Gva) -> bool {
        !walk.changed(&self.shared.memory, level, gva)
    }

    /// Whether the leaf is what a fault would store, and is recorded as such.
    fn is_leaf_of(&self, at: SpteRef, walk: &GuestWalk) -> bool {
        let (gfn, access) = (walk.gfn, walk.access);
        let made = Spte::leaf(gfn.pfn(), access, Young::Accessed).with_key(walk.key);
        let made = match (self.shared.memory.is_read_only(gfn), access.contains(Access::WRITE)) {
            (true, _) => made.host_read_only(),
            (false, true) => made.writable(),
            (false, false) => made,
        };
        let page = self.state.pages.page(at.sp);
        self.spte(at) == made && page.entry_gfn(at.at()) == gfn && page.entry_access(at.at()) == access
    }
}
