//! What a vCPU without long mode has more: PDPTRs and a root of four entries (E040, E043, E052, E101).
//!
//! KVM: `load_pdptrs`, `mmu->pae_root`. Such a root is no shadow page and never enters the cache (E017): each CR3 write frees
//! it, and the next entry makes another.

use smallvec::SmallVec;

use super::{
    Vcpu,
    cr3_watch::{Stopwatch, SwitchResult},
    roots::RootSet,
};
use crate::{
    addr::{Gfn, Gpa, Hpa, PAGE_SHIFT, PHYS_MASK, SpId},
    config::Policy,
    error::Result,
    mmu::Shared,
    op::Outcome,
    paging::{PTE_PRESENT, TableMemory},
    regs::PagingMode,
    role::PageRole,
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

    /// Takes over PDPTRs; a root that was made from other ones goes (F-10).
    pub(super) fn use_pdptrs(&mut self, shared: &Shared, pdptrs: [u64; 4]) {
        if pdptrs != self.pdptrs {
            self.free_roots(shared, RootSet::CURRENT);
            self.pdptrs = pdptrs;
        }
    }

    /// MOV to CR3 outside long mode, of the low 32 bits. Only 4- and 5-level roots are cached (E017), so another value frees the
    /// root. Under PAE the PDPTRs are loaded first, and must load (B.3); up to 2021 the same value loaded nothing but where memory
    /// differed (`pdptrs_changed`, E010).
    #[cold]
    pub(super) fn write_narrow_cr3(&mut self, shared: &Shared, value: u64) -> Outcome {
        let value = value & 0xffff_ffff;
        let stopwatch = Stopwatch::start(&self.cx.stats);
        self.watch.settle(&mut self.cx.stats);
        self.cx.took_lock = false;
        let mut same = value == self.regs.cr3;
        if self.regs.mode() == PagingMode::Pae {
            let Some(pdptrs) = Self::read_pdptrs(shared, value) else { return Outcome::GeneralProtection };
            same &= pdptrs == self.pdptrs;
            self.use_pdptrs(shared, pdptrs);
        }
        let result = match shared.config.policy {
            Policy::Lru(_) => self.switch_lru(shared, value),
            Policy::Locked | Policy::Seed if same => self.rewrite_cr3(shared),
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

    /// Syncs the pages of a PAE root one by one, always under the lock (E052); without paging there is nothing to sync.
    #[cold]
    pub(super) fn sync_pae_root(&mut self, shared: &Shared) {
        if !self.root().is_pae() || self.regs.mode() == PagingMode::None {
            return;
        }
        let pages: SmallVec<[SpId; 4]> = self.roots.pae_pages().collect();
        let mut locked = shared.lock(&mut self.cx, LockReason::Sync);
        for page in pages {
            locked.sync_children(page);
        }
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
            _ => {
                let pdptr = self.pdptrs[gib];
                let frame = Gpa::new(pdptr & PHYS_MASK).gfn();
                (pdptr & PTE_PRESENT != 0 && shared.is_visible(frame)).then_some(frame)
            }
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
        self.roots.pae = entries;
        self.set_current_root(shared, Hpa::PAE_ROOT);
        if mode == PagingMode::None {
            self.roots.current.pgd = 0;
        }
        Ok(())
    }
}
