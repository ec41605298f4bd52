//! Writing SPTEs: the one place that makes, changes and drops them, with rmap and flush rules.
//!
//! KVM: `make_spte`, `mmu_set_spte`, `drop_spte`, `__link_shadow_page`, `rmap_add` (C.2, C.4, C.7).

use super::{MmuLocked, unsync::WriteVerdict};
use crate::{
    access::{Access, ProtectionKey},
    addr::{Gfn, Pfn, SpId, SpteRef},
    config::Mutant,
    shadow::{
        publish::{self, KvmOrder},
        rmap,
    },
    spte::{Spte, Young},
    trace::{TraceKind, TraceRecord},
};

/// Why an SPTE is being made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Maker {
    /// A page fault; `true` for a write.
    Fault {
        /// The access that faulted writes.
        write: bool,
    },
    /// A refill without an access (INVLPG by the 4.19 rule).
    Prefetch,
    /// A sync: it may never gain a writable mapping of a shadowed page.
    Sync,
}

/// What a leaf is to map, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    /// The frame.
    pub(crate) gfn: Gfn,
    /// Rights.
    pub(crate) access: Access,
    /// Protection key.
    pub(crate) key: ProtectionKey,
}

/// What became of an SPTE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SetSpte {
    /// It was installed or changed.
    Fixed,
    /// It was already right.
    Spurious,
    /// The frame is a guest table that must stay write-protected, and the access writes.
    WriteProtected,
}

/// A new SPTE and what allows it.
pub(crate) struct Made {
    spte: Spte,
    permit: Option<publish::WritePermit<'static>>,
    refused: bool,
}

/// Stale rights may be in TLBs: flush before the lock is released.
#[must_use = "a change that leaves stale TLB entries must be flushed"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlushNeeded(pub(crate) bool);

impl MmuLocked<'_> {
    /// Emits an event of shadow page `sp`.
    pub(crate) fn trace_page(&mut self, kind: TraceKind, sp: SpId, value: u64) {
        if self.state.trace.is_some() {
            let page = self.state.pages.page(sp);
            let record = TraceRecord::new(kind, self.cx.trace_id(), page.role, page.gfn, value);
            if let Some(trace) = &mut self.state.trace {
                trace.push(record);
            }
        }
    }

    /// The entry as it is.
    #[inline]
    pub(crate) fn spte(&self, at: SpteRef) -> Spte {
        Spte::from_raw(publish::load_locked(&self.shared.arena.sptes(at.sp)[at.at()]))
    }

    /// Builds a leaf. KVM: `make_spte`.
    pub(crate) fn make_spte(&mut self, leaf: Leaf, old: Spte, maker: Maker) -> Made {
        let Leaf { gfn, access, key } = leaf;
        let young = if maker == Maker::Prefetch { Young::Idle } else { Young::Accessed };
        let mut spte = Spte::leaf(self.pfn_of(gfn, maker), access, young).with_key(key);
        // What no entry ever lets the guest write needs no tracking either: its tables never go unsync (E107).
        let read_only = self.shared.memory.is_read_only(gfn);
        if read_only {
            spte = spte.host_read_only();
        }
        if read_only || !access.contains(Access::WRITE) {
            return Made { spte, permit: None, refused: false };
        }
        // An entry that is writable already needs no lookup: its pages are unsync or not shadowed.
        let verdict = if old.is_present() && old.is_writable() {
            WriteVerdict::already_writable()
        } else {
            self.try_to_unsync(gfn, maker)
        };
        match verdict {
            WriteVerdict::Granted(permit) => Made { spte: spte.writable(), permit: Some(permit), refused: false },
            WriteVerdict::Refused => Made { spte, permit: None, refused: true },
        }
    }

    fn pfn_of(&mut self, gfn: Gfn, maker: Maker) -> Pfn {
        if self.shared.mutated(Mutant::AlterOneSpte) && matches!(maker, Maker::Fault { .. }) {
            self.state.installed += 1;
            if self.state.installed == 100 {
                return Gfn::new(gfn.get() ^ 1).pfn();
            }
        }
        gfn.pfn()
    }

    /// Stores a leaf that [`make_spte`](Self::make_spte) built; whether TLBs may hold more than it grants.
    pub(crate) fn store_leaf(&self, at: SpteRef, old: Spte, made: &Made) -> FlushNeeded {
        let slot = &self.shared.arena.sptes(at.sp)[at.at()];
        match &made.permit {
            Some(permit) => publish::publish_writable(slot, made.spte.raw(), permit),
            None => publish::publish_read_only(slot, made.spte.raw()),
        }
        FlushNeeded(old.loses_write(made.spte))
    }

    /// Whether a built leaf differs from what is there.
    pub(crate) fn differs(made: &Made, old: Spte) -> bool {
        made.spte != old
    }

    /// Installs the leaf of a fault or of a refill. KVM: `mmu_set_spte`.
    pub(crate) fn set_spte(&mut self, at: SpteRef, leaf: Leaf, maker: Maker) -> SetSpte {
        let Leaf { gfn, access, .. } = leaf;
        let old = self.spte(at);
        let mut flush = false;
        let mut mapped = false;
        if old.is_present() {
            if old.pfn() == gfn.pfn() {
                if maker == Maker::Prefetch {
                    return SetSpte::Spurious;
                }
                mapped = true;
            } else {
                self.drop_leaf(at);
                flush = true;
            }
        }
        let old = self.spte(at);
        let made = self.make_spte(leaf, old, maker);
        let mut result = SetSpte::Spurious;
        if Self::differs(&made, old) {
            flush |= self.store_leaf(at, old, &made).0;
            result = SetSpte::Fixed;
            if let Some(trace) = &mut self.state.trace {
                let role = self.shared.arena.header(at.sp).role();
                trace.push(TraceRecord::new(TraceKind::SetSpte, self.cx.trace_id(), role, gfn, made.spte.raw()));
            }
        }
        if made.refused && maker == (Maker::Fault { write: true }) {
            result = SetSpte::WriteProtected;
        }
        if flush {
            self.shared.flush_remote(self.cx);
        }
        self.state.pages.page_mut(at.sp).record(at.at(), gfn, access);
        if !mapped && self.state.rmaps.add(gfn, at) > rmap::RECYCLE {
            self.recycle_rmap(gfn);
        }
        result
    }

    /// Drops every mapping of a frame that has too many (E147).
    fn recycle_rmap(&mut self, gfn: Gfn) {
        self.cx.stats.counters.mmu_recycled += 1;
        while let Some(at) = self.state.rmaps.get(gfn, 0) {
            self.drop_leaf(at);
        }
        self.shared.flush_remote(self.cx);
    }

    /// Removes a leaf and its reverse mapping. The caller flushes.
    pub(crate) fn drop_leaf(&mut self, at: SpteRef) {
        let gfn = self.state.pages.page(at.sp).entry_gfn(at.at());
        publish::withdraw(&self.shared.arena.sptes(at.sp)[at.at()], Spte::EMPTY.raw());
        self.state.rmaps.remove(gfn, at);
    }

    /// Removes a link and the child's knowledge of it. The caller flushes.
    pub(crate) fn unlink_child(&mut self, at: SpteRef, child: SpId) {
        publish::withdraw(&self.shared.arena.sptes(at.sp)[at.at()], Spte::EMPTY.raw());
        self.state.pages.page_mut(child).remove_parent(at);
    }

    /// Removes whatever is at `at`; whether anything was there. KVM: `mmu_page_zap_pte`.
    pub(crate) fn zap_spte(&mut self, at: SpteRef) -> bool {
        let old = self.spte(at);
        if !old.is_present() {
            return false;
        }
        match old.child() {
            Some(child) => self.unlink_child(at, child),
            None => self.drop_leaf(at),
        }
        true
    }

    /// Links `child` at `at`, replacing what is there. KVM: `__link_shadow_page`.
    pub(crate) fn link_child(&mut self, at: SpteRef, child: SpId) {
        if self.zap_spte(at) {
            self.shared.flush_remote(self.cx);
        }
        self.state.pages.page_mut(child).parents.push(at);
        let shared = self.shared;
        let sync = shared.arena.header(child).sync_state();
        let slot = &shared.arena.sptes(at.sp)[at.at()];
        publish::publish_link::<KvmOrder>(shared.config.link, slot, Spte::link(child).raw(), || {
            // With `mark-first` an already unsync level-1 child was marked before its sync; this catches a child that
            // leads to unsync pages, and costs nothing when the bit is set.
            let unsync = sync.is_unsync_locked() || sync.children_locked() != 0;
            if unsync && !shared.mutated(Mutant::LinkDoesNotMark) {
                self.mark_unsync_child(at);
            }
        });
    }

    /// Write-protects every mapping of a frame; whether a flush is needed. KVM: `kvm_vcpu_write_protect_gfn`.
    pub(crate) fn write_protect_gfn(&mut self, gfn: Gfn) -> FlushNeeded {
        let mut flush = false;
        for number in 0.. {
            let Some(at) = self.state.rmaps.get(gfn, number) else { break };
            let old = self.spte(at);
            if old.is_writable() || old.is_mmu_writable() {
                let slot = &self.shared.arena.sptes(at.sp)[at.at()];
                let found = Spte::from_raw(publish::protect(slot, Spte::WRITE_BITS));
                flush |= found.loses_write(found.write_protected());
            }
        }
        FlushNeeded(flush)
    }
}
