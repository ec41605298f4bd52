//! What a vCPU without long mode has more: PDPTRs and a root of four entries (E040, E043, E052, E101).
//!
//! KVM: `load_pdptrs`, `mmu->pae_root`. There such a root never enters the cache (E017): each CR3 write frees it, and the next
//! entry makes another. With `pae_roots=cached` it is parked and found again by the rules of a 4-level root (`narrow_switch.rs`).

use smallvec::SmallVec;

use super::{Vcpu, pae_roots::PaeRoot, roots::RootSet};
use crate::{
    addr::{Gfn, Gpa, Hpa, PAGE_SHIFT, PHYS_MASK, SpId},
    error::Result,
    mmu::Shared,
    paging::{PTE_PRESENT, TableMemory},
    regs::PagingMode,
    role::PageRole,
    shadow::publish::{self, KvmOrder},
    stats::LockReason,
};

impl Vcpu {
    /// Reads the four PDPTRs that CR3 leads to; `None` if they are in no memslot or a present one has a reserved bit set: 63,
    /// those from MAXPHYADDR up, 8:5, 2:1 (B.3). KVM: `load_pdptrs`.
    pub(super) fn read_pdptrs(shared: &Shared, cr3: u64) -> Option<[u64; 4]> {
        let reserved = u64::MAX << shared.config.cpu.maxphyaddr | 0x1e6;
        let mut pdptrs = [0; 4];
        for (at, pdptr) in (cr3 & 0xffff_ffe0..).step_by(8).zip(&mut pdptrs) {
            *pdptr = shared.memory.read_entry(Gpa::new(at))?;
            if *pdptr & PTE_PRESENT != 0 && *pdptr & reserved != 0 {
                return None;
            }
        }
        Some(pdptrs)
    }

    /// Takes over PDPTRs for the CR3 that there is; a root that was made from other ones goes (F-10), and parked ones of this CR3
    /// with it: one of them may be what the next entry makes, and the cache holds nothing twice (I17). A direct root is made from none: what goes is the TLB's.
    pub(super) fn use_pdptrs(&mut self, shared: &Shared, pdptrs: [u64; 4]) {
        if pdptrs != self.pdptrs {
            if self.tdp {
                self.tlb.flush();
            }
            let mut set = if self.tdp { RootSet::none() } else { RootSet::CURRENT };
            if shared.config.caches_pae_roots() && shared.config.policy.is_lru() {
                for (index, root) in self.roots.previous.iter().enumerate() {
                    set = if root.pgd == self.regs.cr3 { set.with(RootSet::previous(index)) } else { set };
                }
            }
            self.free_roots(shared, set);
            self.pdptrs = pdptrs;
        }
    }

    /// Syncs the pages of a PAE root one by one (E052); without paging there is nothing to sync. KVM always takes the lock for it;
    /// where such roots are cached, not if the flags of all its pages are clear (E050).
    #[cold]
    pub(super) fn sync_pae_root(&mut self, shared: &Shared) {
        if !self.root().is_pae() || self.regs.mode() == PagingMode::None {
            return;
        }
        if shared.config.caches_pae_roots() {
            // As for a 4-level root: the guest's stores to its tables come before the look at the flags (D.3, P12).
            publish::barrier_before_observe::<KvmOrder>();
            if !self.pae.pages(self.root()).any(|sp| shared.arena.header(sp).sync_state().observe()) {
                return;
            }
        }
        let pages: SmallVec<[SpId; 4]> = self.pae.pages(self.root()).collect();
        let mut locked = shared.lock(&mut self.cx, LockReason::Sync);
        for page in pages {
            locked.sync_children(page);
        }
    }

    /// Whether a PAE root has no page for a PDPTR whose table is in memory by now (E016).
    pub(super) fn lacks_page(&self, shared: &Shared, root: Hpa) -> bool {
        self.pae.get(root).is_some_and(|table| {
            let lacks =
                |(page, &pdptr): (&Hpa, &u64)| page.shadow_page().is_none() && table_of(shared, pdptr).is_some();
            table.pages.iter().zip(&table.pdptrs).any(lacks)
        })
    }

    /// Makes the four pages of a PAE root (E040, E042, E043): without paging each maps its GiB directly; of a 32-bit guest each
    /// shadows a quarter of the page directory; of a PAE guest the directory that its PDPTR leads to, where there is one.
    ///
    /// # Errors
    /// The arena is full; the references taken so far are given back.
    pub(super) fn load_pae_root(&mut self, shared: &Shared, mode: PagingMode, gfn: Gfn, role: PageRole) -> Result<()> {
        let frames: [Option<Gfn>; 4] = core::array::from_fn(|gib| match mode {
            PagingMode::None => Some(Gfn::new((gib as u64) << (30 - PAGE_SHIFT))),
            PagingMode::Bits32 => Some(gfn),
            _ => table_of(shared, self.pdptrs[gib]),
        });
        let mut locked = shared.lock(&mut self.cx, LockReason::Load);
        let mut entries = [Hpa::default(); 4];
        for (gib, frame) in frames.into_iter().enumerate() {
            let Some(frame) = frame else { continue };
            match locked.alloc_root(frame, role.pae_root(gib)) {
                Ok(hpa) => entries[gib] = hpa,
                Err(error) => {
                    for entry in entries {
                        locked.put_root(entry);
                    }
                    return Err(error);
                }
            }
        }
        drop(locked);
        let table = PaeRoot { pages: entries, pdptrs: self.made_of() };
        let root = self.pae.fill(&self.roots, table);
        self.set_current_root(shared, root);
        if mode == PagingMode::None {
            self.roots.current.pgd = 0;
        }
        Ok(())
    }
}

/// The frame of the table that a PDPTR leads to, if it is present and the table in memory.
fn table_of(shared: &Shared, pdptr: u64) -> Option<Gfn> {
    let frame = Gpa::new(pdptr & PHYS_MASK).gfn();
    (pdptr & PTE_PRESENT != 0 && shared.is_visible(frame)).then_some(frame)
}
