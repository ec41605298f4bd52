//! The page fault outside the lock: guest walk, write tracking, MMIO; then the locked part.
//!
//! KVM: `FNAME(page_fault)`, `page_fault_handle_page_track` (C.4).

use super::Vcpu;
use crate::{
    access::{Access, AccessFlags, AccessKind, FaultCode},
    addr::{Gpa, Gva, PHYS_MASK, SpteRef},
    config::Mutant,
    error::Result,
    mmu::{FaultOutcome, GuestFault, Shared},
    paging::{GuestWalk, PermissionRules, walk},
    regs::PagingMode,
    stats::LockReason,
};

/// What a page fault asks of the access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Handled {
    /// Try it again.
    Retry,
    /// Do it by emulation: the frame is a write-protected table, or the hardware may not set A and D on the way there.
    Emulate(Gpa),
    /// It leaves for the device model.
    Mmio(Gpa),
    /// The guest gets the fault.
    Guest(GuestFault),
}

impl Vcpu {
    /// Handles a fault that the shadow tables gave. `present`: they had an entry that denied the access.
    #[inline(never)]
    pub(crate) fn handle_page_fault(
        &mut self,
        shared: &Shared,
        gva: Gva,
        kind: AccessKind,
        flags: AccessFlags,
        present: bool,
    ) -> Result<Handled> {
        let Some(paging) = &self.cx.paging else { return Ok(Handled::Retry) };
        self.cx.stats.counters.pf_taken += 1;
        let (context, rules) = (shared.walk_context(paging), paging.rules);
        let start = self.walk_start(context.mode, gva);
        let memory = shared.memory.near(Gpa::new(start & PHYS_MASK).gfn());
        let mut found = match walk(&memory, &context, start, gva, kind, flags) {
            Ok(found) => found,
            Err(code) => return Ok(Handled::Guest(self.inject(shared, gva, code))),
        };
        let gpa = Gpa::new(found.gfn.gpa().get() | gva.offset());
        let Some(slot) = shared.memory.slot(found.gfn) else {
            self.cx.stats.counters.mmio_exits += 1;
            return Ok(Handled::Mmio(gpa));
        };
        if kind.is_write() && present && slot.is_write_tracked(found.gfn) {
            self.clear_flooding_on_path(shared, gva);
            self.cx.stats.counters.pf_emulate += 1;
            return Ok(Handled::Emulate(gpa));
        }
        if !slot.admits(kind) {
            // KVM: `KVM_PFN_ERR_RO_FAULT`, before the lock; the page's reads stay mapped (E107).
            self.cx.stats.counters.mmio_exits += 1;
            return Ok(Handled::Mmio(gpa));
        }
        if must_emulate(&found, rules, kind, flags) {
            self.cx.stats.counters.pf_emulate += 1;
            return Ok(Handled::Emulate(gpa));
        }
        fix_supervisor_write(&mut found, rules, kind, flags);
        let seems_mapped = self.seems_mapped(shared, &found, gva, kind, flags);
        let outcome = self.map(shared, &found, gva, kind.is_write(), seems_mapped)?;
        Ok(if outcome == FaultOutcome::Emulate { Handled::Emulate(gpa) } else { Handled::Retry })
    }

    /// Builds, under the lock, the path and the leaf for the address that was walked; `seems_mapped`: another vCPU did so already.
    #[inline]
    pub(super) fn map(
        &mut self,
        shared: &Shared,
        found: &GuestWalk,
        address: Gva,
        write: bool,
        seems_mapped: bool,
    ) -> Result<FaultOutcome> {
        let (root, top) = (self.root(), self.top_page(self.root(), address));
        let mapped =
            seems_mapped && shared.lock_shared(&mut self.cx, LockReason::Fault).view().is_mapped(top, found, address);
        let outcome = if mapped {
            FaultOutcome::Spurious
        } else {
            shared.lock(&mut self.cx, LockReason::Fault).fetch(root, top, found, address, write)?
        };
        let counters = &mut self.cx.stats.counters;
        match outcome {
            FaultOutcome::Retry => {}
            FaultOutcome::Fixed => counters.pf_fixed += 1,
            FaultOutcome::Spurious => counters.pf_spurious += 1,
            FaultOutcome::Emulate => counters.pf_emulate += 1,
        }
        Ok(outcome)
    }

    /// What a guest walk of `gva` begins with: CR3, under PAE paging the PDPTR.
    #[inline]
    pub(super) fn walk_start(&self, mode: PagingMode, gva: Gva) -> u64 {
        if mode == PagingMode::Pae { self.pdptrs[gva.gib()] } else { self.regs.cr3 }
    }

    /// Whether, under a lock that has readers, another vCPU seems to have mapped the same meanwhile: a guess without the lock,
    /// in a section as below.
    fn seems_mapped(&self, shared: &Shared, found: &GuestWalk, gva: Gva, kind: AccessKind, flags: AccessFlags) -> bool {
        let Some(paging) = self.cx.paging.as_ref().filter(|_| shared.config.lock.has_readers()) else { return false };
        let Some(_section) = shared.modes[self.index].section() else { return false };
        self.hardware_walk(shared, gva).is_some_and(|(_, spte)| {
            spte.pfn() == found.gfn.pfn() && paging.rules.shadow().permits_page(spte.access(), spte.key(), kind, flags)
        })
    }

    /// A fault for the guest, which evicts the translation of its address (SDM vol. 3A, 4.10.4.1; E070).
    fn inject(&mut self, shared: &Shared, gva: Gva, code: FaultCode) -> GuestFault {
        self.cx.stats.counters.pf_guest += 1;
        if shared.mutated(Mutant::FaultKeepsEntry) {
            return GuestFault { code };
        }
        self.tlb.drop_page(gva.page());
        if code.contains(FaultCode::PRESENT) && !code.contains(FaultCode::RSVD) {
            self.invalidate_address(shared, self.roots.current, gva);
        }
        GuestFault { code }
    }

    /// Zeroes the flooding counts of the shadow pages that translate `gva`, without the lock.
    ///
    /// KVM: `shadow_page_table_clear_flood`. The walk is a bracketed section like a guest access, so that no page on the
    /// path is freed and used again meanwhile (D.3, E161); with a request pending it is left out, as it is only a hint.
    fn clear_flooding_on_path(&mut self, shared: &Shared, gva: Gva) {
        let Some(_section) = shared.modes[self.index].section() else { return };
        let mut next = self.top_page(self.root(), gva);
        while let Some(sp) = next {
            let header = shared.arena.header(sp);
            header.clear_flooding();
            let level = header.role().level();
            next = if level.is_last() { None } else { shared.spte(SpteRef::new(sp, level.index(gva))).child() };
        }
    }
}

/// CR0.WP=0 with protection keys: a supervisor write to a user page that is read-only, or whose key disables writes, is done for
/// the guest. The hardware runs with WP=1 and would refuse it, and a page made a supervisor page would have no key any more.
fn must_emulate(walk: &GuestWalk, rules: PermissionRules, kind: AccessKind, flags: AccessFlags) -> bool {
    // The walk has permitted it by the guest's rules: what the shadow's refuse is a matter of WP alone.
    rules.keys()
        && walk.access.contains(Access::USER)
        && !rules.shadow().permits_page(walk.access, walk.key, kind, flags)
        && kind.is_write()
}

/// CR0.WP=0: shadow paging has no write right for the supervisor alone, so a supervisor write to a read-only page maps it
/// writable and takes it from the user, and with SMEP from execution (B.5, E110).
fn fix_supervisor_write(walk: &mut GuestWalk, rules: PermissionRules, kind: AccessKind, flags: AccessFlags) {
    let applies = kind.is_write()
        && !flags.is_user()
        && !rules.write_protects_supervisor()
        && !walk.access.contains(Access::WRITE);
    if applies {
        walk.access.insert(Access::WRITE);
        walk.access.remove(Access::USER);
        if rules.smep() {
            walk.access.remove(Access::EXEC);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        addr::{Gfn, Level, SpId},
        config::{LockKind, MemoryRegion, Policy, VmConfig},
        mmu::MmuCx,
        op::Outcome,
        vcpu::access::Action,
    };

    const GVA: Gva = Gva::new(0x123);
    /// Present, writable, user, accessed, dirty.
    const LEAF: u64 = 0x5067;

    /// PML4 at 0x1000, three tables below it, one page, which the vCPU has read.
    fn machine(lock: LockKind, leaf: u64) -> (Shared, Vcpu) {
        machine_with(lock, leaf, MemoryRegion::ram(Gpa::new(1 << 30), 1 << 20))
    }

    fn machine_with(lock: LockKind, leaf: u64, more: MemoryRegion) -> (Shared, Vcpu) {
        let config = VmConfig {
            slots: vec![MemoryRegion::ram(Gpa::new(0), 1 << 20), more],
            policy: Policy::Locked,
            lock,
            ..VmConfig::default()
        };
        let shared = Shared::new(config).unwrap();
        let mut host = MmuCx::new(None, &shared.config);
        for (table, entry) in [(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067), (0x4000, leaf)] {
            shared.host_write_words(&mut host, Gpa::new(table), &[entry]);
        }
        let mut vcpu = Vcpu::new(0, &shared.config).unwrap();
        assert_eq!(vcpu.write_cr3(&shared, 0x1000), Outcome::Ok(0));
        let read = vcpu.access(&shared, GVA, AccessKind::Read, AccessFlags::USER, Action::Translate);
        assert_eq!(read, Ok(Outcome::Ok(leaf & 0x000f_ffff_ffff_f000 | 0x123)));
        (shared, vcpu)
    }

    fn found(shared: &Shared, vcpu: &Vcpu) -> GuestWalk {
        let paging = vcpu.cx.paging.unwrap();
        let context = shared.walk_context(&paging);
        walk(&shared.memory, &context, vcpu.regs.cr3, GVA, AccessKind::Read, AccessFlags::USER).unwrap()
    }

    /// A fault that comes for the lock when the page is mapped already, as after a race with another vCPU: spurious faults,
    /// acquisitions for faults, shared ones.
    fn late_fault(lock: LockKind, leaf: u64, kind: AccessKind) -> (u64, u64, u64) {
        let (shared, mut vcpu) = machine(lock, leaf);
        let before = vcpu.statistics();
        let handled = vcpu.handle_page_fault(&shared, GVA, kind, AccessFlags::USER, false);
        assert_eq!(handled, Ok(Handled::Retry));
        let after = vcpu.statistics();
        let fault = LockReason::Fault as usize;
        (
            after.counters.pf_spurious - before.counters.pf_spurious,
            after.lock.acquisitions[fault] - before.lock.acquisitions[fault],
            after.lock.shared - before.lock.shared,
        )
    }

    #[test]
    fn a_fault_that_another_vcpu_resolved_shares_the_lock_if_it_can() {
        for (_, lock) in LockKind::ALL {
            let shared = u64::from(lock == LockKind::RwLock);
            assert_eq!(late_fault(lock, LEAF, AccessKind::Read), (1, 1, shared), "{lock}");
            assert_eq!(late_fault(lock, LEAF, AccessKind::Write), (1, 1, shared), "{lock}");
            // Mapped without W while D was clear: the write has something to do, and takes the lock alone at once.
            assert_eq!(late_fault(lock, LEAF & !0x40, AccessKind::Write), (0, 1, 0), "{lock}");
        }
    }

    #[test]
    fn e107_the_read_of_a_rom_that_another_vcpu_mapped_shares_the_lock_too() {
        let (shared, mut vcpu) =
            machine_with(LockKind::RwLock, LEAF | 1 << 30, MemoryRegion::rom(Gpa::new(1 << 30), 1 << 20));
        let before = vcpu.statistics();
        let handled = vcpu.handle_page_fault(&shared, GVA, AccessKind::Read, AccessFlags::USER, false);
        assert_eq!(handled, Ok(Handled::Retry));
        let after = vcpu.statistics();
        assert_eq!(after.counters.pf_spurious - before.counters.pf_spurious, 1);
        assert_eq!(after.lock.shared - before.lock.shared, 1);
        let written = vcpu.handle_page_fault(&shared, GVA, AccessKind::Write, AccessFlags::USER, true);
        assert_eq!(written, Ok(Handled::Mmio(Gpa::new(1 << 30 | 0x5123))));
        assert_eq!(vcpu.statistics().lock.total(), after.lock.total(), "before the lock");
    }

    #[test]
    fn only_what_a_fault_would_build_anew_is_mapped() {
        let (shared, mut vcpu) = machine(LockKind::RwLock, LEAF);
        let (root, walk) = (vcpu.root().shadow_page(), found(&shared, &vcpu));
        let mapped = |vcpu: &mut Vcpu, root: Option<SpId>, walk: &GuestWalk, gva: Gva| {
            shared.lock_shared(&mut vcpu.cx, LockReason::Fault).view().is_mapped(root, walk, gva)
        };
        assert!(mapped(&mut vcpu, root, &walk, GVA));
        assert!(!mapped(&mut vcpu, None, &walk, GVA), "no root");
        assert!(!mapped(&mut vcpu, root, &walk, Gva::new(0x1000)), "another page");
        let other = GuestWalk { gfn: Gfn::new(6), ..walk };
        assert!(!mapped(&mut vcpu, root, &other, GVA), "another frame");
        let mut fewer = walk;
        fewer.access.remove(Access::EXEC);
        assert!(!mapped(&mut vcpu, root, &fewer, GVA), "other rights");
        let mut path = walk;
        path.parent_access[Level::PT.at()].remove(Access::WRITE);
        assert!(!mapped(&mut vcpu, root, &path, GVA), "another role on the way");
        for level in 1..=4 {
            let mut changed = walk;
            changed.pte[level] ^= 1 << 52;
            assert!(!mapped(&mut vcpu, root, &changed, GVA), "the guest changed its entry at level {level}");
        }
        shared.lock(&mut vcpu.cx, LockReason::Zap).zap_gfn(Gfn::new(1));
        assert!(!mapped(&mut vcpu, root, &walk, GVA), "an obsolete root");
    }
}
