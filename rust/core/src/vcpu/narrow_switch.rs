//! CR3 writes outside long mode, where a root is four entries (A.1, A.5; docs/machine.md, 8).
//!
//! With `pae_roots=cached` a clean switch takes no lock, like one between 4-level roots (`switch.rs`): it touches the vCPU's own
//! state, and of each of up to four pages the role word, the sync flags and the flooding count, which it only reads.

use super::{
    Vcpu,
    cr3_watch::{Stopwatch, SwitchResult},
    pae_roots::PaeRoots,
    roots::{RootInfo, RootSet},
};
use crate::{
    addr::{Gpa, Hpa, PHYS_MASK},
    config::{Mutant, Policy},
    mmu::{PagingContext, Requests, Shared},
    op::Outcome,
    regs::PagingMode,
};

impl Vcpu {
    /// MOV to CR3 outside long mode, of the low 32 bits. Under PAE the PDPTRs are loaded first, and must load (B.3); up to 2021 the
    /// same value loaded nothing but where memory differed (`pdptrs_changed`, E010). Without paging no root is ever cached (E042).
    #[cold]
    pub(super) fn write_narrow_cr3(&mut self, shared: &Shared, value: u64) -> Outcome {
        let value = value & 0xffff_ffff;
        let stopwatch = Stopwatch::start(&self.cx.stats);
        self.watch.settle(&mut self.cx.stats);
        self.cx.took_lock = false;
        let mode = self.regs.mode();
        let cached = shared.config.caches_pae_roots() && mode != PagingMode::None;
        let mut same = value == self.regs.cr3;
        if mode == PagingMode::Pae {
            let Some(pdptrs) = Self::read_pdptrs(shared, value) else { return Outcome::GeneralProtection };
            if cached && !same {
                // The outgoing root is parked with the PDPTRs that it was made of.
                self.pdptrs = pdptrs;
            } else {
                same &= pdptrs == self.pdptrs;
                self.use_pdptrs(shared, pdptrs);
            }
        }
        let result = match shared.config.policy {
            Policy::Lru(_) if cached => self.switch_lru_narrow(shared, value),
            Policy::Lru(_) => self.switch_lru(shared, value),
            Policy::Locked | Policy::Seed if same => self.rewrite_cr3(shared),
            Policy::Seed if cached => self.switch_seed_narrow(shared, value),
            Policy::Locked | Policy::Seed => {
                if shared.config.policy == Policy::Seed {
                    self.roots.previous[0].pgd = self.regs.cr3;
                }
                self.regs.cr3 = value;
                self.free_roots(shared, RootSet::CURRENT);
                SwitchResult::Miss
            }
        };
        self.watch.open(result, self.cx.took_lock, &stopwatch);
        Outcome::Ok(0)
    }

    /// The seed, its previous root one of four entries. Other than a 4-level one, it is taken only if its pages have the role that
    /// is wanted: what was zapped is not hit.
    fn switch_seed_narrow(&mut self, shared: &Shared, value: u64) -> SwitchResult {
        let old = self.regs.cr3;
        if value == old {
            // Its PDPTRs changed, so the root is gone already (F-10). The cached root and its tag stay as they are: `old == new` is
            // no switch (E047).
            return SwitchResult::Miss;
        }
        self.regs.cr3 = value;
        let hit = self.fast_cr3_switch_narrow(shared, value);
        self.end_seed_switch(shared, old, hit)
    }

    fn fast_cr3_switch_narrow(&mut self, shared: &Shared, value: u64) -> bool {
        if !shared.is_visible(Gpa::new(value & PHYS_MASK).gfn()) {
            // As in long mode: in the switch itself (S5), and before the swap (S1).
            self.cx.requests |= Requests::TRIPLE_FAULT;
            return false;
        }
        let pdptrs = self.made_of();
        let Some(paging) = &self.cx.paging else { return false };
        let previous = &mut self.roots.previous[0];
        core::mem::swap(&mut self.roots.current.hpa, &mut previous.hpa);
        if value != previous.pgd || !serves(shared, &self.pae, paging, &pdptrs, self.roots.current.hpa) {
            return false;
        }
        self.sync_roots(shared);
        self.clear_root_flooding(shared);
        self.cx.stats.counters.tlb_flush += 1;
        self.tlb.flush();
        true
    }

    /// The modern kernel, if it cached such roots: find one, then ask for its sync and flush (A.5, E057).
    fn switch_lru_narrow(&mut self, shared: &Shared, value: u64) -> SwitchResult {
        let mut result = SwitchResult::Same;
        if value != self.regs.cr3 {
            result = if self.fast_pgd_switch_narrow(shared, value) { SwitchResult::Hit } else { SwitchResult::Miss };
            self.regs.cr3 = value;
        }
        self.cx.requests |= Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT;
        result
    }

    fn fast_pgd_switch_narrow(&mut self, shared: &Shared, value: u64) -> bool {
        if self.root().is_dummy() {
            // It leads nowhere and never enters the cache (E031).
            self.free_roots(shared, RootSet::CURRENT);
        }
        let Some(paging) = &self.cx.paging else { return false };
        let (pae, pdptrs) = (&self.pae, self.made_of());
        let usable = |root: RootInfo| root.pgd == value && serves(shared, pae, paging, &pdptrs, root.hpa);
        if self.roots.current.hpa.is_valid() {
            if !self.roots.find_keeping_current(usable) {
                self.free_roots(shared, RootSet::CURRENT);
                self.roots.current = RootInfo::NONE;
                return false;
            }
        } else if !self.roots.find_without_current(usable) {
            return false;
        }
        self.cx.requests |= Requests::LOAD_MMU_PGD;
        self.clear_root_flooding(shared);
        true
    }

    /// Zeroes the flooding count of each page of the current root (E020).
    fn clear_root_flooding(&self, shared: &Shared) {
        if !shared.mutated(Mutant::HitKeepsFlooding) {
            self.pae.pages(self.root()).for_each(|sp| shared.arena.header(sp).clear_flooding());
        }
    }
}

/// Whether a root is one of four entries that serves this context with these PDPTRs.
fn serves(shared: &Shared, pae: &PaeRoots, paging: &PagingContext, pdptrs: &[u64; 4], root: Hpa) -> bool {
    pae.get(root).is_some_and(|table| table.serves(shared, paging.role, pdptrs))
}
