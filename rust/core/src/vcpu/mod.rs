//! One virtual CPU: registers, root cache, TLB, and the way in and out of the guest.
//!
//! Everything here is owned by the thread that drives the vCPU. Other threads reach it through requests only.

pub(crate) mod access;
mod cr3_watch;
mod emulate;
mod enter;
mod fault;
mod invlpg;
mod narrow_switch;
mod pae;
pub mod pae_roots;
mod registers;
pub mod roots;
mod switch;
mod tdp;
pub mod tlb;

pub(crate) use self::tdp::DIRECT_BITS;
use self::{
    cr3_watch::Cr3Watch,
    pae_roots::PaeRoots,
    roots::{RootCache, RootInfo},
    tlb::Tlb,
};
use crate::{
    access::{AccessFlags, AccessKind},
    addr::{Gva, Hpa, SpId},
    config::VmConfig,
    error::Result,
    mmu::{MmuCx, PagingContext, Requests, RootView, Shared, VcpuView},
    op::Outcome,
    paging::{Asked, Look},
    regs::{ControlRegs, PagingMode},
    stats::VcpuStats,
};

/// Tries without progress after which an access is given up as a bug of this library.
pub const MAX_TRIES: u32 = 1_000_000;
/// Tries after which an access steps back before the next. Against a vCPU that stores to the same table again and again the
/// fair lock makes both take turns, and each walk is void by the time its turn comes; KVM's vCPUs get out of step by their exits.
pub(crate) const PATIENCE: u32 = 16;

/// The private state of one vCPU. 128-byte aligned: no line of it is shared.
#[derive(Debug)]
#[repr(align(128))]
pub struct Vcpu {
    pub(crate) index: usize,
    pub(crate) regs: ControlRegs,
    pub(crate) roots: RootCache,
    /// What stands behind roots of four entries.
    pub(crate) pae: PaeRoots,
    /// The entries that PAE paging starts from, as they were when they were loaded (E101).
    pub(crate) pdptrs: [u64; 4],
    pub(crate) tlb: Tlb,
    pub(crate) cx: MmuCx,
    pub(crate) watch: Cr3Watch,
    /// A triple fault was taken.
    pub(crate) shut_down: bool,
    /// Times that an access was tried again since somebody set this to 0: a figure of liveness (R11).
    pub(crate) tries: u32,
    /// The guest's tables are walked by the hardware; the roots are direct.
    tdp: bool,
}

impl Vcpu {
    pub(crate) fn new(index: usize, config: &VmConfig) -> Result<Self> {
        let regs = ControlRegs::booted(&config.cpu);
        let mut cx = MmuCx::new(Some(index), config);
        cx.paging = Some(PagingContext::derive(&regs, config));
        Ok(Self {
            index,
            regs,
            roots: RootCache::new(config.policy.prev_roots()),
            pae: PaeRoots::new(if config.caches_pae_roots() { config.policy.prev_roots() + 1 } else { 1 }),
            pdptrs: [0; 4],
            tlb: Tlb::new(config.tlb_entries)?,
            cx,
            watch: Cr3Watch::default(),
            shut_down: false,
            tries: 0,
            tdp: config.mmu.is_tdp(),
        })
    }

    /// What looks at this vCPU's translations see of its registers, as they are now: requests that are pending change none.
    #[inline]
    pub(crate) fn look<'a>(&'a self, shared: &Shared, kind: AccessKind, flags: AccessFlags) -> Option<Look<'a>> {
        let paging = self.cx.paging.as_ref()?;
        Some(Look {
            context: shared.walk_context(paging),
            asked: Asked::new(paging.rules, kind, flags),
            va_bits: paging.va_bits,
            cr3: self.regs.cr3,
            pdptrs: &self.pdptrs,
        })
    }

    /// Every request that is pending, this vCPU's own and those of others.
    pub(crate) fn pending(&self, shared: &Shared) -> Requests {
        self.cx.requests | Requests::from_bits_truncate(shared.modes[self.index].pending())
    }

    /// What the audit looks at.
    pub(crate) fn view(&self, shared: &Shared) -> VcpuView {
        VcpuView {
            roots: self.roots.iter().map(|root| self.root_view(root)).collect(),
            pdptrs: self.made_of(),
            tagged: shared.config.policy.is_lru(),
            caches_pae: shared.config.caches_pae_roots(),
            pending: self.pending(shared),
            tlb: self.tlb.iter().collect(),
        }
    }

    fn root_view(&self, root: RootInfo) -> RootView {
        let pdptrs = self.pae.get(root.hpa).map(|table| table.pdptrs).unwrap_or_default();
        let pages = root.hpa.shadow_page().into_iter().chain(self.pae.pages(root.hpa)).collect();
        RootView { tag: root.pgd, hpa: root.hpa, pages, pdptrs }
    }

    /// The PDPTRs that a root of four entries is made of: those loaded, zeroes where the mode has none.
    pub(crate) fn made_of(&self) -> [u64; 4] {
        if self.regs.mode() == PagingMode::Pae { self.pdptrs } else { [0; 4] }
    }

    /// The shadow page in which the walk of `gva` begins under a root; `None` for a root, or a GiB, without one.
    #[inline]
    pub(crate) fn top_page(&self, root: Hpa, gva: Gva) -> Option<SpId> {
        match root.shadow_page() {
            None if root.is_pae() => self.pae.page_for(root, gva),
            page => page,
        }
    }

    /// The current root, if it has a shadow page.
    #[inline]
    pub(crate) fn root(&self) -> Hpa {
        self.roots.current.hpa
    }

    /// This vCPU's statistics, with the CR3 write that is still open settled by what it took itself.
    pub(crate) fn statistics(&mut self) -> VcpuStats {
        self.watch.settle(&mut self.cx.stats);
        let mut stats = self.cx.stats.clone();
        stats.tlb_full_flushes = self.tlb.full_flushes();
        stats
    }

    /// Enters the guest once without an access.
    pub(crate) fn enter_once(&mut self, shared: &Shared) -> Result<Outcome> {
        if self.shut_down {
            return Ok(Outcome::TripleFault);
        }
        loop {
            if self.prepare_entry(shared)? == enter::Entry::ShutDown {
                return Ok(Outcome::TripleFault);
            }
            if shared.modes[self.index].section().is_some() {
                return Ok(Outcome::Ok(0));
            }
        }
    }
}
