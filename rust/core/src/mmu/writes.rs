//! Writes to guest page tables: the guest's, which trap, and the host's.
//!
//! KVM: `kvm_mmu_track_write`, `detect_write_flooding`, `detect_write_misaligned` (C.6).

use super::{MmuCx, MmuLocked, Shared};
use crate::{
    addr::{Gfn, Gpa, SpId, SpteRef},
    config::{Mutant, PANIC_VALUE},
    memory,
    stats::LockReason,
};

/// Emulated writes to an upper-level table, without its being used in between, that make it be zapped (E144).
pub(crate) const FLOODING_LIMIT: u32 = 3;

/// An emulated guest write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableWrite {
    /// First byte written.
    pub(crate) gpa: Gpa,
    /// Bytes written; `None` for a write access that stores nothing.
    pub(crate) stored: Option<Stored>,
}

/// What an emulated guest write stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Bytes: 1, 2, 4 or 8.
    pub(crate) size: u8,
}

impl TableWrite {
    /// The index of the one entry written, `None` for a write that is no update of one entry: it crosses entries, or has
    /// fewer than 4 bytes (but a single byte at an entry's start, as a locked bit operation on a flag makes).
    fn entry(&self) -> Option<usize> {
        let offset = self.gpa.get() & 7;
        let size = u64::from(self.stored.map_or(8, |stored| stored.size));
        let whole = if size == 1 { offset == 0 } else { size >= 4 && offset + size <= 8 };
        let aligned = whole || self.stored.is_none();
        aligned.then_some((self.gpa.offset() >> 3) as usize)
    }
}

impl Shared {
    /// Tells the MMU of a guest write that was emulated; guest memory holds it already (E143, E144).
    pub(crate) fn track_write(&self, cx: &mut MmuCx, write: TableWrite) {
        if self.indirect_shadow_pages.is_needed_after_store() {
            cx.stats.counters.mmu_pte_write += 1;
            if !self.is_unshadowed_for_sure(cx, write.gpa.gfn()) {
                self.lock(cx, LockReason::PteWrite).track_write(write);
            }
        }
    }

    /// Host-side write of whole words; shadow entries made from those that change are dropped. The range is in slots.
    pub(crate) fn host_write_words(&self, cx: &mut MmuCx, gpa: Gpa, words: &[u64]) {
        let places = (0_u64..).map(|number| Gpa::new(gpa.get() + number * 8));
        self.lock(cx, LockReason::Host).host_write(places.zip(words).map(|(gpa, &word)| (gpa, u64::MAX, word)));
    }

    /// Host-side write of bytes, at any alignment. The range is in slots.
    pub(crate) fn host_write_bytes(&self, cx: &mut MmuCx, gpa: Gpa, bytes: &[u8]) {
        let start = gpa.get();
        let end = start + bytes.len() as u64;
        let words = (start & !7..end).step_by(8).map(|at| {
            if at >= start
                && let Some(word) = bytes[(at - start) as usize..].first_chunk()
            {
                return (Gpa::new(at), u64::MAX, u64::from_le_bytes(*word));
            }
            let (mut mask, mut word) = ([0; 8], [0; 8]);
            for place in at.max(start)..end.min(at + 8) {
                mask[(place - at) as usize] = 0xff;
                word[(place - at) as usize] = bytes[(place - start) as usize];
            }
            (Gpa::new(at), u64::from_le_bytes(mask), u64::from_le_bytes(word))
        });
        self.lock(cx, LockReason::Host).host_write(words);
    }
}

impl MmuLocked<'_> {
    fn track_write(&mut self, write: TableWrite) {
        let gfn = write.gpa.gfn();
        let mut flush = false;
        for sp in self.state.pages.valid_indirect(gfn) {
            let flooding = self.counts_as_flooding(sp);
            match write.entry() {
                Some(index) if !flooding => {
                    if let Some(stored) = write.stored {
                        flush |= self.zap_written(SpteRef::new(sp, index), stored, gfn);
                    }
                }
                _ => {
                    self.prepare_zap(sp);
                    self.cx.stats.counters.mmu_flooded += 1;
                }
            }
        }
        self.flush_or_commit(flush);
    }

    /// Counts the write; whether the page has had enough of them. Level-1 pages go unsync instead.
    fn counts_as_flooding(&mut self, sp: SpId) -> bool {
        !self.state.pages.page(sp).role.level().is_last()
            && self.shared.arena.header(sp).add_flooding() >= FLOODING_LIMIT
            && !self.shared.mutated(Mutant::NoFloodingLimit)
    }

    /// Zaps the entry made from a written guest entry; whether it was present.
    fn zap_written(&mut self, at: SpteRef, stored: Stored, gfn: Gfn) -> bool {
        if self.shared.mutated(Mutant::NoZapOnWrite) {
            return false;
        }
        let present = self.zap_spte(at);
        // KVM reads the entry back for 4- and 8-byte writes only.
        let entry = Gpa::new(gfn.gpa().get() + (at.at() as u64) * 8);
        if stored.size >= 4
            && !self.state.pages.page(at.sp).role.level().is_last()
            && self.shared.memory.load(entry, 8) != Some(0)
        {
            self.cx.stats.counters.mmu_pde_zapped += 1;
        }
        present
    }

    /// Writes the bits of each mask; the guest's stores to the other bytes of the word are not lost.
    fn host_write(&mut self, words: impl Iterator<Item = (Gpa, u64, u64)>) {
        let untracked = [Mutant::HostWriteUntracked, Mutant::ChildReuseIgnoresGfn, Mutant::ChildReuseIgnoresRole];
        let tracked = !untracked.into_iter().any(|mutant| self.shared.mutated(mutant));
        let mut flush = false;
        for (gpa, mask, value) in words {
            let Some(word) = self.shared.memory.word(gpa) else { continue };
            let (old, new) = memory::merge(word, mask, value);
            assert!(!(value == PANIC_VALUE && self.shared.mutated(Mutant::PanicUnderLock)), "panic-under-lock");
            if old != new && tracked {
                for sp in self.state.pages.valid_indirect(gpa.gfn()) {
                    flush |= self.zap_spte(SpteRef::new(sp, (gpa.offset() >> 3) as usize));
                }
            }
        }
        if flush {
            self.shared.flush_remote(self.cx);
        }
    }
}
