//! How the shadow tables translate an address now, to be looked at: every entry on the way, and nothing is changed.
//!
//! An access would service requests, load a root, set A and D, fill the TLB. This does none of it and counts nothing.

use crate::{
    addr::{Gfn, Gpa, Gva, Hpa, SpId, SpteRef},
    error::{Error, Result},
    mmu::{MmuState, Shared},
    regs::ControlRegs,
    role::PageRole,
    spte::Spte,
    vcpu::{DIRECT_BITS, Vcpu},
    vm::Vm,
};

/// The way that the hardware of one vCPU goes for an address, and what decides it.
///
/// In two dimensions (`mmu=tdp`) the hardware's own tables translate guest-physical addresses: the way is that of the address taken
/// for a gpa, and only [`tlb`](Self::tlb) is of the gva.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShadowPath {
    /// The address, as an instruction forms it: outside long mode of 32 bits. In two dimensions as it was given.
    pub address: Gva,
    /// Whether the hardware walks in two dimensions.
    pub two_dimensions: bool,
    /// The registers.
    pub regs: ControlRegs,
    /// The PDPTRs as they were loaded (E101); of use under PAE paging.
    pub pdptrs: [u64; 4],
    /// The current root: of a shadow page, [`Hpa::INVALID`], [`Hpa::DUMMY_ROOT`], or a PAE root.
    pub root: Hpa,
    /// Of a PAE root the pages of the four GiB, 0 where there is none.
    pub entries: Option<[Hpa; 4]>,
    /// From the first shadow page down, to a leaf or an entry that is not present; empty where the walk finds no page at all,
    /// and for an address that is not canonical.
    pub steps: Vec<ShadowStep>,
    /// The leaf that the software TLB keeps for the page.
    pub tlb: Option<u64>,
    /// Requests that the vCPU services before its next access (docs/machine.md, 6).
    pub requests: u32,
    /// Whether a triple fault was taken.
    pub shut_down: bool,
}

/// One entry on the way, and the shadow page that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowStep {
    /// Number of the page; [`SpId::hpa`](crate::SpId::hpa) is where it lies.
    pub id: u32,
    /// Gfn of the guest table, or the first gfn mapped.
    pub gfn: Gfn,
    /// Role of the page.
    pub role: PageRole,
    /// Which of its entries.
    pub index: u16,
    /// The entry.
    pub spte: u64,
    /// Whether the page is unsync.
    pub unsync: bool,
    /// Entries of the page that are, or lead to, unsync pages.
    pub unsync_children: u32,
    /// Whether this entry is one of them.
    pub marked: bool,
}

impl ShadowPath {
    /// Where the hardware gets to: the gpa behind the leaf; `None` where it exits.
    pub fn gpa(&self) -> Option<Gpa> {
        let step = self.steps.last()?;
        let spte = Spte::from_raw(step.spte);
        let leaf = spte.is_present() && spte.child().is_none();
        leaf.then(|| Gpa::new(spte.pfn().gfn().gpa().get() | self.address.offset()))
    }
}

impl Vm {
    /// The shadow tables on the way to `gva`, as the hardware of one vCPU would walk them now. Works on a broken machine too.
    ///
    /// ```
    /// use shadow_mmu::{AccessFlags, AccessKind, Gpa, Gva, MemoryRegion, Vm, VmConfig};
    ///
    /// let vm = Vm::new(VmConfig { slots: vec![MemoryRegion::ram(Gpa::new(0), 2 << 20)], vcpus: 1, ..VmConfig::default() })?;
    /// for table in 1..5_u64 {
    ///     vm.host_write(Gpa::new(table << 12), &(((table + 1) << 12) | 7).to_le_bytes())?;
    /// }
    /// vm.cpu(0)?.write_cr3(0x1000)?;
    /// assert_eq!(vm.shadow_path(0, Gva::new(0x123))?.steps, []); // no root is loaded before the first access
    /// vm.cpu(0)?.access(Gva::new(0x123), AccessKind::Read, AccessFlags::USER)?;
    /// let path = vm.shadow_path(0, Gva::new(0x123))?;
    /// assert_eq!((path.steps.len(), path.gpa()), (4, Some(Gpa::new(0x5123))));
    /// # Ok::<(), shadow_mmu::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoVcpu`]; [`Error::Busy`] while a vCPU is driven.
    pub fn shadow_path(&self, vcpu: usize, gva: Gva) -> Result<ShadowPath> {
        let cpus = self.all_cpus()?;
        let cpu = cpus.get(vcpu).ok_or(Error::NoVcpu { vcpu, count: cpus.len() })?;
        Ok(path(&self.shared, &self.shared.peek(), &cpu.vcpu, gva))
    }
}

fn path(shared: &Shared, state: &MmuState, vcpu: &Vcpu, given: Gva) -> ShadowPath {
    let mode = vcpu.regs.mode();
    let two_dimensions = shared.config.mmu.is_tdp();
    let gva = if mode.is_long() { given } else { given.truncated() };
    let address = if two_dimensions { given } else { gva };
    let translatable = if two_dimensions {
        given.get() >> DIRECT_BITS == 0
    } else {
        !mode.is_long() || gva.is_canonical(mode.address_bits())
    };
    let top = if translatable { vcpu.top_page(vcpu.root(), address) } else { None };
    ShadowPath {
        address,
        two_dimensions,
        regs: vcpu.regs,
        pdptrs: vcpu.pdptrs,
        root: vcpu.root(),
        entries: vcpu.pae.get(vcpu.root()).map(|table| table.pages),
        steps: top.map_or_else(Vec::new, |top| steps(shared, state, top, address)),
        tlb: vcpu.tlb.lookup(gva.page()),
        requests: vcpu.pending(shared).bits(),
        shut_down: vcpu.shut_down,
    }
}

/// The hardware's way from a page down.
fn steps(shared: &Shared, state: &MmuState, top: SpId, gva: Gva) -> Vec<ShadowStep> {
    let mut steps = Vec::new();
    let mut next = Some(top);
    let mut level = state.pages.page(top).role.level();
    while let Some(id) = next {
        let at = SpteRef::new(id, level.index(gva));
        let page = state.pages.page(id);
        let sync = shared.arena.header(id).sync_state();
        let spte = shared.spte(at);
        steps.push(ShadowStep {
            id: id.get(),
            gfn: page.gfn,
            role: page.role,
            index: at.index,
            spte: spte.raw(),
            unsync: sync.is_unsync_locked(),
            unsync_children: sync.children_locked(),
            marked: page.unsync_bitmap.contains(at.at()),
        });
        next = if level.is_last() { None } else { spte.child() };
        level = if level.is_last() { level } else { level.down() };
    }
    steps
}
