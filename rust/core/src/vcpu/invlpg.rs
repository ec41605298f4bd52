//! INVLPG, and the invalidation that goes with an injected page fault (A.6).

use super::{Vcpu, roots::RootInfo};
use crate::{
    addr::{Gva, Hpa},
    config::{Mutant, Policy},
    mmu::Shared,
    op::Outcome,
    regs::PagingMode,
    stats::LockReason,
};

impl Vcpu {
    /// INVLPG. A non-canonical address is a no-operation (E062).
    pub(crate) fn invlpg(&mut self, shared: &Shared, gva: Gva) -> Outcome {
        let Some(va_bits) = self.cx.paging.as_ref().map(|paging| paging.va_bits) else { return Outcome::Ok(0) };
        let gva = if va_bits == 32 { gva.truncated() } else { gva };
        if va_bits != 32 && !gva.is_canonical(va_bits) {
            return Outcome::Ok(0);
        }
        self.cx.stats.counters.invlpg += 1;
        if !shared.mutated(Mutant::InvlpgKeepsTlb) {
            self.tlb.drop_page(gva.page());
        }
        match shared.config.policy {
            Policy::Locked | Policy::Seed => {
                let top = self.top_page(self.root(), gva);
                if self.has_entries_to_sync(self.root()) && !self.is_clean(shared, self.root()) {
                    let mut locked = shared.lock(&mut self.cx, LockReason::Invlpg);
                    if let Some(top) = top {
                        locked.zap_and_refill(top, gva);
                    }
                }
            }
            Policy::Lru(_) => {
                self.invalidate_address(shared, self.roots.current, gva);
                let missed = usize::from(shared.mutated(Mutant::InvlpgMissesOneRoot));
                for index in 0..self.roots.previous.len().saturating_sub(missed) {
                    self.invalidate_address(shared, self.roots.previous[index], gva);
                }
            }
        }
        Outcome::Ok(0)
    }

    /// Syncs the entry for one address under one root: one acquisition of the lock for each root.
    pub(crate) fn invalidate_address(&mut self, shared: &Shared, root: RootInfo, gva: Gva) {
        if !self.has_entries_to_sync(root.hpa) || self.is_clean(shared, root.hpa) {
            return;
        }
        let top = self.top_page(root.hpa, gva);
        let mut locked = shared.lock(&mut self.cx, LockReason::Invlpg);
        if let Some(top) = top {
            locked.sync_address(top, gva);
        }
    }

    /// Whether a lock that has readers was taken shared and nothing below the root is unsync.
    fn is_clean(&mut self, shared: &Shared, root: Hpa) -> bool {
        root.shadow_page().is_some_and(|root| shared.is_clean_for_sure(&mut self.cx, root, LockReason::Invlpg))
    }

    /// Whether guest tables stand behind the root. Without paging none do, nor behind a direct root, and KVM has no `sync_spte` then.
    fn has_entries_to_sync(&self, root: Hpa) -> bool {
        !self.tdp && (root.shadow_page().is_some() || (root.is_pae() && self.regs.mode() != PagingMode::None))
    }
}
