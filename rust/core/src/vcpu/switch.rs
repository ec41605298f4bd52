//! CR3 writes: what becomes of the current root.
//!
//! KVM: `kvm_set_cr3`, the seed's `fast_cr3_switch`, `kvm_mmu_new_pgd`, `fast_pgd_switch` (A.1, A.5).
//!
//! A clean fast switch touches the vCPU's own state, the memslots (read only), and of the root's shadow page the role
//! word, the sync flags and the flooding count, which it only reads: no lock, no read-modify-write, no store to a
//! line that another vCPU reads.

use super::{
    Vcpu,
    cr3_watch::{Stopwatch, SwitchResult},
    roots::{RootInfo, RootSet},
};
use crate::{
    addr::{Gpa, PHYS_MASK},
    config::{Mutant, Policy},
    mmu::{Requests, Shared},
    op::Outcome,
};

/// `CR3_PCID_INVD`: kernels before 4.19 dropped it whatever CR4.PCIDE was (E011, seed defect S2).
const CR3_PCID_INVD: u64 = 1 << 63;

impl Vcpu {
    /// MOV to CR3.
    #[inline]
    pub(crate) fn write_cr3(&mut self, shared: &Shared, value: u64) -> Outcome {
        if !self.regs.is_long_mode() {
            return self.write_narrow_cr3(shared, value);
        }
        let lru = shared.config.policy.is_lru();
        let value = if lru { value } else { value & !CR3_PCID_INVD };
        let same = value == self.regs.cr3;
        if !same && value >> shared.config.cpu.maxphyaddr != 0 {
            // Before any effect on the MMU (E014); with bit 63 here, E012.
            return Outcome::GeneralProtection;
        }
        let stopwatch = Stopwatch::start(&self.cx.stats);
        self.watch.settle(&mut self.cx.stats);
        self.cx.took_lock = false;
        let result = match shared.config.policy {
            Policy::Locked => self.switch_locked(shared, value),
            Policy::Seed => self.switch_seed(shared, value),
            Policy::Lru(_) => self.switch_lru(shared, value),
        };
        self.watch.open(result, self.cx.took_lock, &stopwatch);
        Outcome::Ok(0)
    }

    /// Before the patch: the root goes, and the next entry loads another (three acquisitions in all).
    #[inline(never)]
    fn switch_locked(&mut self, shared: &Shared, value: u64) -> SwitchResult {
        if value == self.regs.cr3 {
            return self.rewrite_cr3(shared);
        }
        self.regs.cr3 = value;
        self.free_roots(shared, RootSet::CURRENT);
        SwitchResult::Miss
    }

    /// The seed: one previous root (A.1).
    #[inline]
    fn switch_seed(&mut self, shared: &Shared, value: u64) -> SwitchResult {
        let old = self.regs.cr3;
        if value == old {
            return self.rewrite_cr3(shared);
        }
        self.regs.cr3 = value;
        let hit = self.fast_cr3_switch(shared, value);
        self.end_seed_switch(shared, old, hit)
    }

    /// After the seed's fast switch or its failure: the root of a miss goes, and the tag of the outgoing CR3 is
    /// recorded after the slow path too (E006), whether or not a swap was made, which is the seed's defect S1.
    #[inline]
    pub(super) fn end_seed_switch(&mut self, shared: &Shared, old: u64, hit: bool) -> SwitchResult {
        if !hit {
            self.free_roots(shared, RootSet::CURRENT);
        }
        if hit || !shared.mutated(Mutant::TagOnlyOnHit) {
            self.roots.previous[0].pgd = old;
        }
        if hit { SwitchResult::Hit } else { SwitchResult::Miss }
    }

    #[inline]
    fn fast_cr3_switch(&mut self, shared: &Shared, value: u64) -> bool {
        if !shared.is_visible(Gpa::new(value & PHYS_MASK).gfn()) {
            // In the switch itself, from a value that the guest may never use (S5), and before the swap (S1).
            self.cx.requests |= Requests::TRIPLE_FAULT;
            return false;
        }
        let previous = &mut self.roots.previous[0];
        core::mem::swap(&mut self.roots.current.hpa, &mut previous.hpa);
        if value != previous.pgd {
            return false;
        }
        let Some(root) = self.roots.current.hpa.shadow_page() else { return false };
        self.sync_roots(shared);
        if !shared.mutated(Mutant::HitKeepsFlooding) {
            shared.arena.header(root).clear_flooding();
        }
        // `set_cr3` flushed the hardware TLB.
        self.cx.stats.counters.tlb_flush += 1;
        self.tlb.flush();
        true
    }

    /// A write of the same value up to 4.19: sync at once, flush at the next entry (E008).
    #[inline(never)]
    pub(super) fn rewrite_cr3(&mut self, shared: &Shared) -> SwitchResult {
        self.sync_roots(shared);
        self.cx.requests |= Requests::TLB_FLUSH;
        SwitchResult::Same
    }

    /// The modern kernel: find a root, then ask for its sync and flush (A.5, E057).
    #[inline(never)]
    pub(super) fn switch_lru(&mut self, shared: &Shared, value: u64) -> SwitchResult {
        let mut result = SwitchResult::Same;
        if value != self.regs.cr3 {
            // The MMU first, the register after it: the outgoing tag is with its root (E048).
            result = if self.fast_pgd_switch(shared, value) { SwitchResult::Hit } else { SwitchResult::Miss };
            self.regs.cr3 = value;
        }
        // Only the hardware's own TLB has anything of the old CR3 where the hardware walks the guest's tables (F-47).
        self.cx.requests |=
            if self.tdp { Requests::TLB_FLUSH_GUEST } else { Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT };
        result
    }

    #[inline]
    fn fast_pgd_switch(&mut self, shared: &Shared, value: u64) -> bool {
        if self.tdp {
            return self.switch_direct_root(shared);
        }
        let Some(role) = self.cx.paging.as_ref().map(|paging| paging.role) else { return false };
        self.find_root(shared, |root| {
            let any_role = shared.mutated(Mutant::RootHitIgnoresRole);
            let role_agrees = |sp| any_role || shared.arena.header(sp).role() == role;
            root.pgd == value && root.hpa.shadow_page().is_some_and(role_agrees)
        })
    }

    /// Makes the first usable root the current one (A.5).
    #[inline]
    pub(super) fn find_root(&mut self, shared: &Shared, usable: impl Fn(RootInfo) -> bool) -> bool {
        if self.root().is_dummy() || self.root().is_pae() {
            // A root without a shadow page never enters the cache (E031).
            self.free_roots(shared, RootSet::CURRENT);
        }
        if self.root().is_valid() {
            if !self.roots.find_keeping_current(usable) {
                self.free_roots(shared, RootSet::CURRENT);
                self.roots.current = RootInfo::NONE;
                return false;
            }
        } else if !self.roots.find_without_current(usable) {
            return false;
        }
        self.cx.requests |= Requests::LOAD_MMU_PGD;
        if let Some(root) = self.root().shadow_page().filter(|_| !shared.mutated(Mutant::HitKeepsFlooding)) {
            shared.arena.header(root).clear_flooding();
        }
        true
    }
}
