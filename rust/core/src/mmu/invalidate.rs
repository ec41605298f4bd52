//! INVLPG on shadow tables, by the modern rule and by that of 4.19 to 6.3 (A.6, E063).

use super::{
    MmuLocked,
    set_spte::{Leaf, Maker},
};
use crate::{
    addr::{Gva, SpId, SpteRef},
    config::Mutant,
};

impl MmuLocked<'_> {
    /// Syncs the entries for `gva` of unsync pages under `root`. KVM: `__kvm_mmu_invalidate_addr` (6.4).
    pub(crate) fn sync_address(&mut self, root: SpId, gva: Gva) {
        let mut sp = root;
        loop {
            let level = self.state.pages.page(sp).role.level();
            let at = SpteRef::new(sp, level.index(gva));
            let sync = self.shared.arena.header(sp).sync_state();
            let stale = sync.is_unsync_locked() && !self.shared.mutated(Mutant::InvlpgSkipsSync);
            if stale && self.spte(at).is_present() && self.sync_entry(at) {
                self.shared.flush_remote(self.cx);
            }
            if self.shared.arena.header(sp).sync_state().children_locked() == 0 || level.is_last() {
                return;
            }
            match self.spte(at).child() {
                Some(child) => sp = child,
                None => return,
            }
        }
    }

    /// Syncs one entry; whether it changed so that TLBs must be flushed. A page of another mode loses the entry.
    fn sync_entry(&mut self, at: SpteRef) -> bool {
        let role = self.state.pages.page(at.sp).role;
        if self.cx.paging.as_ref().is_some_and(|paging| paging.role.may_sync(role)) {
            self.sync_spte(at).0
        } else {
            self.drop_leaf(at);
            true
        }
    }

    /// Zaps the last-level entry for `gva` if its page is unsync, and refills it at once. KVM: `FNAME(invlpg)` up to 6.3.
    pub(crate) fn zap_and_refill(&mut self, root: SpId, gva: Gva) {
        let mut sp = root;
        loop {
            let level = self.state.pages.page(sp).role.level();
            let at = SpteRef::new(sp, level.index(gva));
            let sync = self.shared.arena.header(sp).sync_state();
            if level.is_last() {
                if sync.is_unsync_locked() {
                    self.refill(at);
                }
                return;
            }
            if sync.children_locked() == 0 {
                return;
            }
            match self.spte(at).child() {
                Some(child) => sp = child,
                None => return,
            }
        }
    }

    fn refill(&mut self, at: SpteRef) {
        if self.zap_spte(at) {
            self.shared.flush_remote(self.cx);
        }
        // What is fetched ahead must be writable for the host, as `gfn_to_pfn_memslot_atomic` asks: nothing of a read-only slot is.
        let is_writable = |leaf: &Leaf| self.shared.memory.slot(leaf.gfn).is_some_and(|slot| !slot.is_read_only());
        if let Some(leaf) = self.guest_leaf(at, Mutant::None).filter(is_writable) {
            self.set_spte(at, leaf, Maker::Prefetch);
        }
    }
}
