//! Guest entry: requests in their order, then the root.
//!
//! KVM: `vcpu_enter_guest`, `kvm_mmu_reload` (A.5, E074).

use super::{
    Vcpu,
    cr3_watch::Stopwatch,
    roots::{RootInfo, RootSet},
};
use crate::{
    addr::{Gpa, Hpa, PHYS_MASK, SpId},
    config::{Mutant, Policy},
    error::Result,
    mmu::{PagingContext, Requests, Shared},
    regs::PagingMode,
    shadow::publish::{self, KvmOrder},
    stats::LockReason,
};

/// What came of an attempt to enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    /// Requests are serviced and a root is loaded.
    Ready,
    /// The vCPU is shut down.
    ShutDown,
}

/// What a CR3 write asks its own vCPU for (A.5).
const BY_CR3_WRITE: Requests = Requests::MMU_SYNC.union(Requests::LOAD_MMU_PGD).union(Requests::TLB_FLUSH_CURRENT);

impl Vcpu {
    /// Services requests and loads a root until nothing is pending.
    #[inline]
    pub(crate) fn prepare_entry(&mut self, shared: &Shared) -> Result<Entry> {
        if self.shut_down {
            return Ok(Entry::ShutDown);
        }
        let nothing = self.cx.requests.is_empty() && shared.modes[self.index].pending() == 0;
        if nothing && self.root().is_valid() {
            self.watch.settle(&mut self.cx.stats);
            return Ok(Entry::Ready);
        }
        self.prepare_entry_slowly(shared)
    }

    #[inline(never)]
    fn prepare_entry_slowly(&mut self, shared: &Shared) -> Result<Entry> {
        let stopwatch = Stopwatch::start(&self.cx.stats);
        self.cx.took_lock = false;
        let mut loaded = false;
        let result = self.serve_until_ready(shared, &mut loaded);
        self.watch.entered(self.cx.took_lock, loaded, &stopwatch);
        self.watch.settle(&mut self.cx.stats);
        result
    }

    #[inline]
    fn serve_until_ready(&mut self, shared: &Shared, loaded: &mut bool) -> Result<Entry> {
        loop {
            if self.service_requests(shared) == Entry::ShutDown {
                return Ok(Entry::ShutDown);
            }
            if !self.root().is_valid() {
                *loaded = true;
                self.load_root(shared)?;
            }
            if self.pending(shared).is_empty() && self.root().is_valid() {
                return Ok(Entry::Ready);
            }
        }
    }

    /// Takes a request if it is pending. A taken bit is cleared before it is acted on.
    fn take(&mut self, shared: &Shared, request: Requests) -> bool {
        let own = self.cx.requests.contains(request);
        self.cx.requests.remove(request);
        shared.modes[self.index].take(request.bits()) != 0 || own
    }

    /// Serves what is pending, in KVM's order.
    #[inline]
    fn service_requests(&mut self, shared: &Shared) -> Entry {
        let own = self.cx.requests;
        if BY_CR3_WRITE.contains(own) && shared.modes[self.index].pending() == 0 {
            self.serve_cr3_write(shared, own);
            return Entry::Ready;
        }
        self.service_all_requests(shared)
    }

    /// Nothing is pending but what a CR3 write asks for: taken in one, served in the same order.
    #[inline]
    fn serve_cr3_write(&mut self, shared: &Shared, own: Requests) {
        self.cx.requests = Requests::empty();
        if own.contains(Requests::MMU_SYNC) {
            self.sync_roots(shared);
        }
        if !self.pending(shared).is_empty() {
            // The sync asked for more; the flush that is still due may be a part of it.
            self.cx.requests |= own & Requests::TLB_FLUSH_CURRENT;
            self.serve_flushes(shared);
        } else if own.contains(Requests::TLB_FLUSH_CURRENT) {
            self.serve_flush(shared);
        }
    }

    #[inline(never)]
    fn service_all_requests(&mut self, shared: &Shared) -> Entry {
        if self.take(shared, Requests::TRIPLE_FAULT) {
            self.shut_down = true;
            return Entry::ShutDown;
        }
        if self.take(shared, Requests::FREE_OBSOLETE_ROOTS) {
            self.free_obsolete_roots(shared);
        }
        if self.take(shared, Requests::MMU_SYNC) {
            self.sync_roots(shared);
        }
        // The root that the hardware would load is `roots.current` already; the request keeps KVM's order (E022).
        self.take(shared, Requests::LOAD_MMU_PGD);
        self.serve_flushes(shared);
        Entry::Ready
    }

    #[inline(never)]
    fn serve_flushes(&mut self, shared: &Shared) {
        if self.take(shared, Requests::TLB_FLUSH) {
            self.take(shared, Requests::TLB_FLUSH_CURRENT);
            self.serve_flush(shared);
        }
        if self.take(shared, Requests::TLB_FLUSH_CURRENT) {
            self.serve_flush(shared);
        }
        if self.take(shared, Requests::TLB_FLUSH_GUEST) {
            self.sync_roots(shared);
            self.free_unsync_previous(shared);
            self.serve_flush(shared);
        }
    }

    #[inline]
    fn serve_flush(&mut self, shared: &Shared) {
        self.cx.stats.counters.tlb_flush += 1;
        if !shared.mutated(Mutant::FlushKeepsTlb) {
            self.tlb.flush();
        }
    }

    /// Syncs the current root. Without the lock if its flags are clear, but for the policy that knew no such test.
    ///
    /// KVM: `kvm_mmu_sync_roots` (E050). An audit needs the lock, so none is made on the way that skips it (E053).
    #[inline]
    pub(crate) fn sync_roots(&mut self, shared: &Shared) {
        let Some(root) = self.root().shadow_page() else { return self.sync_pae_root(shared) };
        // Found before the fence, behind which every load waits.
        let state = shared.arena.header(root).sync_state();
        // The instruction that brought us here (MOV to CR3, CR4) serializes: the guest's stores to its tables come before
        // the look at the root's flags (D.3, P12). An x86 CPU has that for free; here it is a fence.
        publish::barrier_before_observe::<KvmOrder>();
        if shared.config.policy == Policy::Locked || state.observe() {
            self.sync_root_locked(shared, root);
        }
    }

    /// The part of [`sync_roots`](Self::sync_roots) that takes the lock; apart, so that a clean switch has no frame for it.
    #[inline(never)]
    fn sync_root_locked(&mut self, shared: &Shared, root: SpId) {
        if self.tdp {
            return; // nothing below a direct root is made from guest tables, and its flags are always clear
        }
        if !shared.is_clean_for_sure(&mut self.cx, root, LockReason::Sync) {
            shared.lock(&mut self.cx, LockReason::Sync).sync_children(root);
        }
    }

    /// Loads the root for CR3: allocate, sync, flush. KVM: `kvm_mmu_load` (E036).
    fn load_root(&mut self, shared: &Shared) -> Result<()> {
        if self.tdp {
            return self.load_direct_root(shared);
        }
        let gfn = Gpa::new(self.regs.cr3 & PHYS_MASK).gfn();
        let Some(&PagingContext { mode, role, .. }) = self.cx.paging.as_ref() else { return Ok(()) };
        if mode != PagingMode::None && !shared.is_visible(gfn) {
            if shared.config.policy.is_lru() {
                self.set_current_root(shared, Hpa::DUMMY_ROOT);
                self.tlb.flush();
            } else {
                // Up to 6.5: the pgd is outside memory, so the guest is shut down (E015); the caller's loop services this.
                self.cx.requests |= Requests::TRIPLE_FAULT;
            }
            return Ok(());
        }
        if mode.is_long() {
            let hpa = shared.lock(&mut self.cx, LockReason::Load).alloc_root(gfn, role)?;
            self.set_current_root(shared, hpa);
        } else {
            self.load_pae_root(shared, mode, gfn, role)?;
        }
        self.sync_roots(shared);
        self.tlb.flush();
        Ok(())
    }

    pub(super) fn set_current_root(&mut self, shared: &Shared, hpa: Hpa) {
        self.roots.current.hpa = hpa;
        if shared.config.policy.is_lru() {
            self.roots.current.pgd = self.regs.cr3;
        }
    }

    /// Frees the selected roots; no lock if none of them is valid (E004). KVM: `kvm_mmu_free_roots`.
    pub(crate) fn free_roots(&mut self, shared: &Shared, set: RootSet) {
        let selected = |position: usize| {
            set.contains(if position == 0 { RootSet::CURRENT } else { RootSet::previous(position - 1) })
        };
        if !self.roots.iter().enumerate().any(|(at, root)| selected(at) && root.hpa.is_valid()) {
            return;
        }
        let mut locked = shared.lock(&mut self.cx, LockReason::Free);
        for (index, slot) in self.roots.previous.iter_mut().enumerate() {
            if set.contains(RootSet::previous(index)) && slot.hpa.is_valid() {
                locked.put_root(slot.hpa);
                for page in self.pae.take(slot.hpa) {
                    locked.put_root(page);
                }
                slot.hpa = Hpa::INVALID;
            }
        }
        if set.contains(RootSet::CURRENT) && self.roots.current.hpa.is_valid() {
            locked.put_root(self.roots.current.hpa);
            for entry in self.pae.take(self.roots.current.hpa) {
                locked.put_root(entry);
            }
            self.roots.current = RootInfo::NONE;
        }
        locked.commit_zap();
    }

    /// Frees the roots whose page was zapped, and those without a page: nobody can tell whether they are (E151). Where PAE roots
    /// are cached, their pages tell.
    fn free_obsolete_roots(&mut self, shared: &Shared) {
        let zapped = |sp| shared.arena.header(sp).role().is_invalid();
        let set = self.roots_where(RootSet::CURRENT, |hpa| {
            if hpa.is_pae() && shared.config.caches_pae_roots() {
                return self.pae.pages(hpa).any(zapped) || self.lacks_page(shared, hpa);
            }
            hpa.is_valid() && hpa.shadow_page().is_none_or(zapped)
        });
        self.free_roots(shared, set);
    }

    /// Frees the previous roots that would need a sync. KVM: `kvm_mmu_sync_prev_roots`.
    fn free_unsync_previous(&mut self, shared: &Shared) {
        let set = self.roots_where(RootSet::none(), |hpa| {
            let mut pages = hpa.shadow_page().into_iter().chain(self.pae.pages(hpa));
            pages.any(|sp| shared.arena.header(sp).sync_state().observe())
        });
        self.free_roots(shared, set);
    }

    /// The previous roots, and the current one if `candidates` has it, for which `which` holds.
    fn roots_where(&self, candidates: RootSet, which: impl Fn(Hpa) -> bool) -> RootSet {
        let mut set = RootSet::none();
        if candidates.contains(RootSet::CURRENT) && which(self.roots.current.hpa) {
            set = set.with(RootSet::CURRENT);
        }
        for (index, root) in self.roots.previous.iter().enumerate() {
            if which(root.hpa) {
                set = set.with(RootSet::previous(index));
            }
        }
        set
    }
}
