//! Two-dimensional paging: the hardware walks the guest's own tables, each address in them through direct tables (E018, E044).
//!
//! No guest table is shadowed, so nothing is ever write-protected, unsync or stale, and what the guest does to its tables, its
//! registers and its TLB costs no exit. What costs one is a guest-physical address without a direct entry. KVM:
//! `kvm_tdp_page_fault`, `mmu_alloc_direct_roots`. Nothing of this lies on the path of a shadow MMU but a test of a flag.

use core::cell::Cell;

use super::{
    Vcpu,
    access::{Action, Inside, descend, perform},
    fault::Handled,
    roots::RootInfo,
};
use crate::{
    access::{AccessFlags, AccessKind, FaultCode},
    addr::{Gfn, Gpa, Gva, SpId},
    error::Result,
    memory::GuestMemory,
    mmu::{GuestFault, Shared},
    op::Outcome,
    paging::{GuestWalk, TableMemory, Update, walk},
    regs::{CR0_WP, ControlRegs},
    role::PageRole,
    spte::Spte,
    stats::LockReason,
    sync::AtomicU64,
};

/// Bits of a guest-physical address that the four levels of direct tables translate.
pub(crate) const DIRECT_BITS: u32 = 48;

/// What the direct tables do not let the hardware do. KVM: an EPT violation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Violation {
    /// The page that the access is for is not mapped, or not for writing.
    Page(Gpa),
    /// The guest table that an entry is to be read from is not mapped; the guest's fault if it is in no memslot.
    Table(Gpa, FaultCode),
    /// A or D is to be set in an entry of a guest table, which the guest may not write (E107). Such a change is a write like any other
    /// (SDM vol. 3C, "EPT Violations").
    Mark,
}

/// Guest memory as the hardware's walk of the guest's tables sees it: through the direct tables.
struct Nested<'a> {
    shared: &'a Shared,
    root: Option<SpId>,
    /// The first address that was not mapped.
    missing: Cell<Option<Gpa>>,
    /// Whether A or D could not be set in some entry.
    unmarked: Cell<bool>,
}

impl<'a> Nested<'a> {
    fn new(shared: &'a Shared, root: Option<SpId>) -> Self {
        Self { shared, root, missing: Cell::new(None), unmarked: Cell::new(false) }
    }

    /// The direct leaf of a guest-physical address: all rights, but W only where the guest may write. It is accessed and dirty
    /// from the start.
    fn leaf(&self, gpa: Gpa) -> Option<Spte> {
        let leaf = self
            .root
            .filter(|_| gpa.get() >> DIRECT_BITS == 0)
            .and_then(|root| descend(self.shared, root, Gva::new(gpa.get())));
        if leaf.is_none() && self.missing.get().is_none() {
            self.missing.set(Some(gpa));
        }
        leaf.map(|(_, spte)| spte)
    }

    /// The memory behind a guest-physical address.
    fn translate(&self, gpa: Gpa) -> Option<Gpa> {
        self.leaf(gpa).map(|spte| Gpa::new(spte.pfn().gfn().gpa().get() | gpa.offset()))
    }

    /// Notes that an entry may not be changed.
    fn noting(&self, update: Update) -> Update {
        if update == Update::ReadOnly {
            self.unmarked.set(true);
        }
        update
    }
}

impl TableMemory for Nested<'_> {
    type Place<'a>
        = &'a AtomicU64
    where
        Self: 'a;

    fn place(&self, gpa: Gpa) -> Option<Self::Place<'_>> {
        self.translate(gpa).and_then(|gpa| self.shared.memory.place(gpa))
    }

    fn load(place: &AtomicU64) -> u64 {
        <GuestMemory as TableMemory>::load(place)
    }

    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> Update {
        let update = |at| self.shared.memory.update_entry(at, old, new);
        self.noting(self.translate(gpa).map_or(Update::Changed, update))
    }

    fn update_half(&self, gpa: Gpa, old: u32, new: u32) -> Update {
        let update = |at| self.shared.memory.update_half(at, old, new);
        self.noting(self.translate(gpa).map_or(Update::Changed, update))
    }
}

impl Vcpu {
    /// Inside the guest, where the TLB has nothing: the walk in two dimensions, then memory. A fault that the guest's tables give is
    /// the guest's own and leads to no exit.
    #[inline(never)]
    pub(super) fn walk_in_two_dimensions(
        &mut self,
        shared: &Shared,
        gva: Gva,
        kind: AccessKind,
        flags: AccessFlags,
        action: Action,
    ) -> Inside {
        let Some(paging) = &self.cx.paging else { return Inside::Done(Outcome::TripleFault) };
        let memory = Nested::new(shared, self.root().shadow_page());
        let found =
            match walk(&memory, &shared.walk_context(paging), self.walk_start(paging.mode, gva), gva, kind, flags) {
                Ok(found) => found,
                Err(code) => {
                    return match memory.missing.get() {
                        Some(gpa) => Inside::Violation(Violation::Table(gpa, code)),
                        None => Inside::Done(Outcome::PageFault { address: gva, code }),
                    };
                }
            };
        if memory.unmarked.get() {
            return Inside::Violation(Violation::Mark);
        }
        let gpa = Gpa::new(found.gfn.gpa().get() | gva.offset());
        let denied = |leaf: &Spte| kind.is_write() && !leaf.is_writable();
        let Some(leaf) = memory.leaf(gpa).filter(|leaf| !denied(leaf)) else {
            return Inside::Violation(Violation::Page(gpa));
        };
        // Without D no write hits, whatever CR0.WP lets a supervisor do: a page that the guest may not write has none (E107).
        let dirty = found.is_dirty() && leaf.is_writable();
        let entry = Spte::combined(leaf.pfn(), found.access, dirty).with_key(found.key);
        self.tlb.fill(gva.page(), entry.raw());
        Inside::Done(perform(shared, entry, gva, action))
    }

    /// The exit of an address without a direct entry, or with one that may not be written: an entry is made, under the lock, if
    /// there is memory behind it and that may be done.
    #[inline(never)]
    pub(super) fn handle_violation(
        &mut self,
        shared: &Shared,
        violation: Violation,
        gva: Gva,
        kind: AccessKind,
        flags: AccessFlags,
    ) -> Result<Handled> {
        self.cx.stats.counters.pf_taken += 1;
        let gpa = match violation {
            Violation::Mark => return Ok(self.emulate_unmarked(shared, gva, kind, flags)),
            Violation::Page(gpa) if shared.memory.slot(gpa.gfn()).is_none_or(|slot| !slot.admits(kind)) => {
                self.cx.stats.counters.mmio_exits += 1;
                return Ok(Handled::Mmio(gpa));
            }
            Violation::Table(gpa, code) if !shared.is_visible(gpa.gfn()) => return Ok(self.refuse(gva, code)),
            Violation::Page(gpa) | Violation::Table(gpa, _) => gpa,
        };
        let seems_mapped = self.seems_mapped_directly(shared, gpa);
        self.map(shared, &GuestWalk::direct(gpa), Gva::new(gpa.get()), kind.is_write(), seems_mapped)?;
        Ok(Handled::Retry)
    }

    fn refuse(&mut self, gva: Gva, code: FaultCode) -> Handled {
        self.cx.stats.counters.pf_guest += 1;
        self.tlb.drop_page(gva.page());
        Handled::Guest(GuestFault { code })
    }

    /// The hardware gave up where it could set neither A nor D: the access is made for the guest, by a walk of the hypervisor's own,
    /// which leaves both (E107). Nothing is kept of it, so that the next access exits as well.
    fn emulate_unmarked(&mut self, shared: &Shared, gva: Gva, kind: AccessKind, flags: AccessFlags) -> Handled {
        let Some(paging) = &self.cx.paging else { return Handled::Retry };
        let (context, start) = (shared.walk_context(paging), self.walk_start(paging.mode, gva));
        match walk(&shared.memory, &context, start, gva, kind, flags) {
            Ok(found) => {
                self.cx.stats.counters.pf_emulate += 1;
                Handled::Emulate(Gpa::new(found.gfn.gpa().get() | gva.offset()))
            }
            Err(code) => self.refuse(gva, code),
        }
    }

    /// Whether, under a lock that has readers, another vCPU seems to have made the entry meanwhile: a guess without the lock, in a
    /// section as an access.
    fn seems_mapped_directly(&self, shared: &Shared, gpa: Gpa) -> bool {
        let Some(root) = self.root().shadow_page().filter(|_| shared.config.lock.has_readers()) else { return false };
        let Some(_section) = shared.modes[self.index].section() else { return false };
        descend(shared, root, Gva::new(gpa.get())).is_some()
    }

    /// The one direct root of the machine, found or made; CR3 has no part in it, so its tag is 0 (E028).
    #[cold]
    pub(super) fn load_direct_root(&mut self, shared: &Shared) -> Result<()> {
        let hpa = shared.lock(&mut self.cx, LockReason::Load).alloc_root(Gfn::new(0), PageRole::tdp())?;
        self.roots.current = RootInfo { pgd: 0, hpa };
        self.tlb.flush();
        Ok(())
    }

    /// Finds a root for another CR3: whatever its value, one with the role of a direct root serves (E028).
    #[inline(never)]
    pub(super) fn switch_direct_root(&mut self, shared: &Shared) -> bool {
        let has_role = |sp| shared.arena.header(sp).role() == PageRole::tdp();
        self.find_root(shared, |root| root.hpa.shadow_page().is_some_and(has_role))
    }

    /// Whether a register write leaves the roots. Since 6.4 a change of CR0.WP alone does: a direct role does not have it, and the
    /// TLB's entries are judged by the register as it is.
    pub(super) fn keeps_direct_root(&self, shared: &Shared, old: &ControlRegs) -> bool {
        shared.config.policy.is_lru() && old.cr0 ^ self.regs.cr0 == CR0_WP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{LockKind, MemoryRegion, MmuKind, Policy, VmConfig},
        mmu::MmuCx,
        op::Outcome,
    };

    const GVA: Gva = Gva::new(0x123);
    const PAGE: Gpa = Gpa::new(0x5123);

    /// PML4 at 0x1000, three tables below it, one page, which the vCPU has read.
    fn machine(lock: LockKind) -> (Shared, Vcpu) {
        let slots = vec![MemoryRegion::ram(Gpa::new(0), 1 << 20)];
        let config = VmConfig { slots, policy: Policy::Locked, lock, mmu: MmuKind::Tdp, ..VmConfig::default() };
        let shared = Shared::new(config).unwrap();
        let mut host = MmuCx::new(None, &shared.config);
        for (table, entry) in [(0x1000, 0x2067), (0x2000, 0x3067), (0x3000, 0x4067), (0x4000, 0x5067)] {
            shared.host_write_words(&mut host, Gpa::new(table), &[entry]);
        }
        let mut vcpu = Vcpu::new(0, &shared.config).unwrap();
        assert_eq!(vcpu.write_cr3(&shared, 0x1000), Outcome::Ok(0));
        let read = vcpu.access(&shared, GVA, AccessKind::Read, AccessFlags::USER, Action::Translate);
        assert_eq!(read, Ok(Outcome::Ok(PAGE.get())));
        (shared, vcpu)
    }

    #[test]
    fn e044_an_exit_that_another_vcpu_resolved_shares_the_lock_if_it_can_and_changes_nothing() {
        for (_, lock) in LockKind::ALL {
            let (shared, mut vcpu) = machine(lock);
            let before = vcpu.statistics();
            for violation in [Violation::Page(PAGE), Violation::Table(PAGE, FaultCode::USER)] {
                let handled = vcpu.handle_violation(&shared, violation, GVA, AccessKind::Read, AccessFlags::USER);
                assert_eq!(handled, Ok(Handled::Retry));
            }
            let after = vcpu.statistics();
            let readers = lock == LockKind::RwLock;
            assert_eq!(after.lock.shared - before.lock.shared, if readers { 2 } else { 0 }, "{lock}");
            assert_eq!(after.counters.pf_spurious - before.counters.pf_spurious, 2, "{lock}");
            assert_eq!(after.counters.pf_fixed, before.counters.pf_fixed, "{lock}");
        }
    }

    #[test]
    fn e044_what_no_direct_entry_maps_is_told_by_its_first_address() {
        let (shared, vcpu) = machine(LockKind::Queued);
        let memory = Nested::new(&shared, vcpu.root().shadow_page());
        assert_eq!(memory.translate(PAGE), Some(PAGE));
        assert_eq!(memory.read_entry(Gpa::new(0x4000)), Some(0x5067));
        for gpa in [0x9008, 0x8000, PAGE.get() | 1 << 48] {
            assert_eq!(memory.translate(Gpa::new(gpa)), None, "{gpa:#x}");
        }
        assert_eq!(memory.missing.get(), Some(Gpa::new(0x9008)));
        assert_eq!(memory.update_entry(Gpa::new(0x9008), 0, 1), Update::Changed);
        assert_eq!(memory.update_half(Gpa::new(0x9008), 0, 1), Update::Changed);
    }
}
