//! Writes to guest page tables: the guest's, which trap, and the host's.
//!
//! KVM: `kvm_mmu_track_write`, `detect_write_flooding`, `detect_write_misaligned` (C.6).

use super::{MmuCx, MmuLocked, Shared};
use crate::{
    addr::{Gpa, SpId, SpteRef},
    config::{Mutant, PANIC_VALUE},
    memory,
    role::PageRole,
    stats::LockReason,
};

/// Emulated writes to an upper-level table, without its being used in between, that make it be zapped (E144).
pub(crate) const FLOODING_LIMIT: u32 = 3;

/// An emulated guest write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TableWrite {
    /// First byte written.
    pub(crate) gpa: Gpa,
    /// What was stored; `None` for a write access that stores nothing.
    pub(crate) stored: Option<Stored>,
}

/// What an emulated guest write stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// Bytes: 1, 2, 4 or 8.
    pub(crate) size: u8,
}

impl TableWrite {
    /// The write as the MMU takes it: a guest with PAE writes the halves of its 8-byte entries one by one.
    fn widened(self, pae: bool) -> Self {
        match self.stored {
            Some(Stored { size: 4 }) if pae && self.gpa.get() & 7 <= 4 => {
                Self { gpa: Gpa::new(self.gpa.get() & !7), stored: Some(Stored { size: 8 }) }
            }
            _ => self,
        }
    }

    /// Whether this updates one entry of a table whose shadow has this role: it does not if it crosses entries, or has
    /// fewer than 4 bytes (but a single byte at an entry's start, as a locked bit operation on a flag makes).
    fn updates_one_entry(&self, role: PageRole) -> bool {
        let Some(Stored { size }) = self.stored else { return true };
        let (size, width) = (u64::from(size), if role.has_four_byte_entries() { 4 } else { 8 });
        let offset = self.gpa.get() & (width - 1);
        if size == 1 { offset == 0 } else { size >= 4 && offset + size <= width }
    }
}

impl Shared {
    /// Tells the MMU of a guest write that was emulated; guest memory holds it already (E143, E144). `pae`: CR4.PAE.
    pub(crate) fn track_write(&self, cx: &mut MmuCx, write: TableWrite, pae: bool) {
        if self.indirect_shadow_pages.is_needed_after_store() {
            cx.stats.counters.mmu_pte_write += 1;
            if !self.is_unshadowed_for_sure(cx, write.gpa.gfn()) {
                self.lock(cx, LockReason::PteWrite).track_write(write.widened(pae));
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
            let role = self.state.pages.page(sp).role;
            if flooding || !write.updates_one_entry(role) {
                self.prepare_zap(sp);
                self.cx.stats.counters.mmu_flooded += 1;
            } else if let Some(stored) = write.stored {
                for index in role.entries_at(write.gpa.offset()) {
                    flush |= self.zap_written(SpteRef::new(sp, index), write.gpa, stored);
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
    fn zap_written(&mut self, at: SpteRef, gpa: Gpa, stored: Stored) -> bool {
        if self.shared.mutated(Mutant::NoZapOnWrite) {
            return false;
        }
        let present = self.zap_spte(at);
        // KVM reads the entry back for 4- and 8-byte writes only.
        if stored.size >= 4
            && !self.state.pages.page(at.sp).role.level().is_last()
            && self.shared.memory.load(gpa, stored.size) != Some(0)
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
                    let role = self.state.pages.page(sp).role;
                    let halves = if role.has_four_byte_entries() { [0, 4].as_slice() } else { &[0] };
                    for &half in halves {
                        let changed = halves.len() == 1 || ((old ^ new) >> (half * 8)) as u32 != 0;
                        for index in if changed { role.entries_at(gpa.offset() + half) } else { 0..0 } {
                            flush |= self.zap_spte(SpteRef::new(sp, index));
                        }
                    }
                }
            }
        }
        if flush {
            self.shared.flush_remote(self.cx);
        }
    }
}
