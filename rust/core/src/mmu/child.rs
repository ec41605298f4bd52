//! Finding, making and linking shadow pages.
//!
//! KVM: `kvm_mmu_get_child_sp`, `kvm_mmu_find_shadow_page`, `kvm_mmu_alloc_shadow_page`, `account_shadowed` (C.3).

use super::{MmuLocked, set_spte::FlushNeeded};
use crate::{
    addr::{Gfn, SpId, SpteRef},
    config::Mutant,
    error::Result,
    role::PageRole,
    shadow::publish::{self, KvmOrder, LinkStep},
    trace::TraceKind,
};

/// A child page for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Child {
    /// It is linked there already.
    Linked(SpId),
    /// It must be linked.
    Unlinked(SpId),
}

impl MmuLocked<'_> {
    /// The child page that the entry at `at` must lead to: `gfn` in this role.
    #[inline]
    pub(super) fn get_child(&mut self, at: SpteRef, gfn: Gfn, role: PageRole) -> Result<Child> {
        match self.linked_child(at, gfn, role) {
            Some((child, _)) => Ok(Child::Linked(child)),
            None => Ok(Child::Unlinked(self.get_page(gfn, role, Some(at))?)),
        }
    }

    /// That child and its role, if it is linked there already.
    #[inline]
    pub(super) fn linked_child(&self, at: SpteRef, gfn: Gfn, role: PageRole) -> Option<(SpId, PageRole)> {
        let child = self.spte(at).child()?;
        let page = self.state.pages.page(child);
        // Both must agree: F-02 and F-03 were each a missing half of this test.
        let gfn_agrees = page.gfn == gfn || self.shared.mutated(Mutant::ChildReuseIgnoresGfn);
        let role_agrees = page.role == role || self.shared.mutated(Mutant::ChildReuseIgnoresRole);
        (gfn_agrees && role_agrees).then_some((child, page.role))
    }

    /// Finds the valid page of (`gfn`, `role`) or makes one. `at` is the entry that will lead to it; a root has none.
    #[inline(never)]
    pub(super) fn get_page(&mut self, gfn: Gfn, role: PageRole, at: Option<SpteRef>) -> Result<SpId> {
        let found = self.find_page(gfn, role, at);
        self.commit_zap();
        if let Some(sp) = found {
            self.trace_page(TraceKind::GetPage, sp, 0);
            return Ok(sp);
        }
        let sp = self.make_page(gfn, role)?;
        self.trace_page(TraceKind::GetPage, sp, 1);
        Ok(sp)
    }

    fn find_page(&mut self, gfn: Gfn, role: PageRole, at: Option<SpteRef>) -> Option<SpId> {
        for sp in self.state.pages.valid(gfn) {
            let page_role = self.state.pages.page(sp).role;
            if page_role.is_invalid() {
                continue;
            }
            let unsync = self.shared.arena.header(sp).sync_state().is_unsync_locked();
            if page_role != role {
                // A frame that becomes an upper-level table must be write-protected: its unsync pages go (E138).
                if unsync && !role.level().is_last() {
                    self.prepare_zap(sp);
                }
                continue;
            }
            if unsync {
                let policy = self.shared.config.link;
                if !publish::before_link::<KvmOrder>(policy, |step| self.bring_in(step, sp, at)) {
                    return None;
                }
            }
            self.shared.arena.header(sp).clear_flooding();
            return Some(sp);
        }
        None
    }

    /// One step of linking an unsync page (D.3, P12); false if the page was zapped.
    fn bring_in(&mut self, step: LinkStep, sp: SpId, at: Option<SpteRef>) -> bool {
        match step {
            LinkStep::Mark => {
                if let Some(at) = at.filter(|_| !self.shared.mutated(Mutant::LinkDoesNotMark)) {
                    self.mark_unsync_child(at);
                }
                true
            }
            LinkStep::Protect => {
                let gfn = self.state.pages.page(sp).gfn;
                if self.write_protect_gfn(gfn).0 {
                    self.shared.flush_remote(self.cx);
                }
                self.clear_unsync_page(sp);
                true
            }
            LinkStep::Sync => match self.sync_page(sp) {
                Ok(FlushNeeded(changed)) => {
                    if changed {
                        self.shared.flush_remote(self.cx);
                    }
                    true
                }
                Err(_) => false,
            },
        }
    }

    /// Makes a page. An indirect one starts synced and its frame write-protected.
    fn make_page(&mut self, gfn: Gfn, role: PageRole) -> Result<SpId> {
        self.shared.arena.ensure(self.state.pages.next_id())?;
        let sp = self.state.pages.allocate(gfn, role);
        let header = self.shared.arena.header(sp);
        header.set_role(role);
        header.clear_flooding();
        debug_assert!(!header.sync_state().observe(), "a zapped page leaves no marks");
        self.cx.stats.counters.mmu_cache_miss += 1;
        if !role.is_direct() {
            self.account(gfn, role);
        }
        Ok(sp)
    }

    /// Counts an indirect page and write-protects its frame. KVM: `account_shadowed` (F-16).
    fn account(&mut self, gfn: Gfn, role: PageRole) {
        // The full fence in there orders the count before the guest entries that are read from now on.
        self.shared.indirect_shadow_pages.account();
        if !role.level().is_last()
            && let Some(slot) = self.shared.memory.slot(gfn)
        {
            slot.adjust_write_track(gfn, 1);
        }
        if !self.shared.mutated(Mutant::TableStaysWritable) && self.write_protect_gfn(gfn).0 {
            self.shared.flush_remote(self.cx);
        }
    }
}
