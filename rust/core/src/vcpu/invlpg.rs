//! INVLPG, and the invalidation that goes with an injected page fault (A.6).

use super::Vcpu;
use crate::{
    addr::{Gva, Hpa},
    config::{Mutant, Policy},
    error::Result,
    mmu::Shared,
    op::Outcome,
    stats::LockReason,
};

impl Vcpu {
    /// INVLPG. A non-canonical address is a no-operation (E062).
    pub(crate) fn invlpg(&mut self, shared: &Shared, gva: Gva) -> Result<Outcome> {
        let Some(paging) = self.cx.paging else {
            return self.regs.require_paging().map(|_| Outcome::Ok(0));
        };
        if !gva.is_canonical(paging.va_bits) {
            return Ok(Outcome::Ok(0));
        }
        self.cx.stats.counters.invlpg += 1;
        if !shared.mutated(Mutant::InvlpgKeepsTlb) {
            self.tlb.drop_page(gva.page());
        }
        match shared.config.policy {
            Policy::Locked | Policy::Seed => {
                if let Some(root) = self.root().shadow_page()
                    && !shared.is_clean_for_sure(&mut self.cx, root, LockReason::Invlpg)
                {
                    shared.lock(&mut self.cx, LockReason::Invlpg).zap_and_refill(root, gva);
                }
            }
            Policy::Lru(_) => {
                self.invalidate_address(shared, self.root(), gva);
                let missed = usize::from(shared.mutated(Mutant::InvlpgMissesOneRoot));
                for index in 0..self.roots.previous.len().saturating_sub(missed) {
                    self.invalidate_address(shared, self.roots.previous[index].hpa, gva);
                }
            }
        }
        Ok(Outcome::Ok(0))
    }

    /// Syncs the entry for one address under one root: one acquisition of the lock for each root.
    pub(crate) fn invalidate_address(&mut self, shared: &Shared, root: Hpa, gva: Gva) {
        if let Some(root) = root.shadow_page()
            && !shared.is_clean_for_sure(&mut self.cx, root, LockReason::Invlpg)
        {
            shared.lock(&mut self.cx, LockReason::Invlpg).sync_address(root, gva);
        }
    }
}
