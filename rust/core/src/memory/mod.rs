//! Guest memory: words of memslots, read and written atomically by guest and host alike.
//!
//! Why plain atomics: docs/adr/001-guest-memory.md.

mod memslot;

use std::sync::OnceLock;

use shadow_mmu_sys::hint;

pub use self::memslot::Memslot;
use crate::{
    addr::{ENTRIES, Gfn, Gpa, PAGE_SIZE},
    config::{MAX_GPA, MemoryRegion},
    error::{Error, Result},
    paging::{FrameMemory, TableMemory, Update},
    sync::{AtomicU64, Ordering},
};

/// Most memslots (KVM long had 509).
pub const MAX_SLOTS: usize = 512;

/// All memslots. Slots are only ever added, so a reader needs no lock.
#[derive(Debug)]
pub struct GuestMemory {
    slots: Box<[OnceLock<Memslot>]>,
    limit: u64,
}

impl GuestMemory {
    /// Memory with these slots, for a guest of this physical address width.
    ///
    /// # Errors
    /// As [`add`](Self::add); [`Error::Config`] for no slot at all.
    pub(crate) fn new(slots: &[MemoryRegion], maxphyaddr: u8) -> Result<Self> {
        if slots.is_empty() {
            return Err(Error::Config { what: "slots", got: "none".into(), expected: "at least one memslot".into() });
        }
        let memory =
            Self { slots: (0..MAX_SLOTS).map(|_| OnceLock::new()).collect(), limit: MAX_GPA.min(1 << maxphyaddr) };
        for region in slots {
            memory.check(*region)?;
        }
        for region in slots {
            memory.add(*region)?;
        }
        Ok(memory)
    }

    /// Checks that a slot is page aligned, not empty, and below the limit.
    pub(crate) fn check(&self, region: MemoryRegion) -> Result<()> {
        region.check(self.limit)
    }

    /// Adds a slot and returns its index. Its memory reads as zero.
    ///
    /// # Errors
    /// [`Error::Memslot`] for a misaligned, empty, too high or overlapping slot or the 513th one;
    /// [`Error::OutOfMemory`]. Nothing is changed then.
    pub(crate) fn add(&self, region: MemoryRegion) -> Result<usize> {
        self.check(region)?;
        let first = region.gpa.gfn().get();
        let pages = region.bytes / PAGE_SIZE;
        if let Some(other) = self.iter().find(|slot| slot.overlaps(first, pages)) {
            return Err(region.refused(format!("no overlap with the slot at {}", other.base().gpa())));
        }
        let index = self.iter().count();
        let slot = Memslot::new(index, region)?;
        match self.slots.get(index).map(|place| place.set(slot)) {
            Some(Ok(())) => Ok(index),
            _ => Err(Error::Config {
                what: "memslots",
                got: format!("{}", index + 1),
                expected: format!("at most {MAX_SLOTS}"),
            }),
        }
    }

    /// The slots in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Memslot> {
        self.slots.iter().map_while(OnceLock::get)
    }

    /// The slot that has `gfn`.
    #[inline]
    pub fn slot(&self, gfn: Gfn) -> Option<&Memslot> {
        for place in &self.slots {
            let slot = place.get()?;
            if slot.contains(gfn) {
                return Some(slot);
            }
        }
        None
    }

    /// The 8-byte word that contains `gpa`.
    #[inline]
    pub(crate) fn word(&self, gpa: Gpa) -> Option<&AtomicU64> {
        self.slot(gpa.gfn()).map(|slot| slot.word(gpa))
    }

    /// The word of an entry whose A and D may be set; what becomes of them otherwise. Slots are never removed, so that the table of
    /// a walk is always in one.
    #[inline]
    fn updatable(&self, gpa: Gpa) -> core::result::Result<&AtomicU64, Update> {
        match self.slot(gpa.gfn()) {
            Some(slot) if slot.is_read_only() => Err(Update::ReadOnly),
            Some(slot) => Ok(slot.word(gpa)),
            None => Err(Update::Changed),
        }
    }

    /// Whether the guest may not write `gfn`; false where no slot has it.
    #[inline]
    pub(crate) fn is_read_only(&self, gfn: Gfn) -> bool {
        self.slot(gfn).is_some_and(Memslot::is_read_only)
    }

    /// Whether all of `len` bytes from `gpa` are in slots.
    ///
    /// # Errors
    /// [`Error::NoSlot`] otherwise.
    pub fn require(&self, gpa: Gpa, len: u64) -> Result<()> {
        let missing = Error::NoSlot { gpa, len };
        let Some(last) = gpa.get().checked_add(len.saturating_sub(1)) else { return Err(missing) };
        let mut frame = gpa.gfn().get();
        while frame <= last >> 12 {
            match self.slot(Gfn::new(frame)) {
                Some(slot) => frame = slot.end(),
                None => return Err(missing),
            }
        }
        Ok(())
    }

    /// Host-side read. Words are read one by one, each with Acquire.
    ///
    /// # Errors
    /// [`Error::NoSlot`] if any byte is in no slot.
    pub fn read(&self, gpa: Gpa, out: &mut [u8]) -> Result<()> {
        self.require(gpa, out.len() as u64)?;
        let mut at = gpa.get();
        let mut rest = out;
        while !rest.is_empty() {
            let offset = (at & 7) as usize;
            let take = rest.len().min(8 - offset);
            let (now, later) = rest.split_at_mut(take);
            let word = self.word(Gpa::new(at)).ok_or(Error::NoSlot { gpa: Gpa::new(at), len: take as u64 })?;
            // ORDERING(guest-tso): the host sees what the guest stored before what it sees here.
            now.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes()[offset..offset + take]);
            at += take as u64;
            rest = later;
        }
        Ok(())
    }

    /// Guest load of `size` bytes (1, 2, 4 or 8) inside one page.
    #[inline]
    pub(crate) fn load(&self, gpa: Gpa, size: u8) -> Option<u64> {
        let slot = self.slot(gpa.gfn())?;
        let offset = gpa.get() & 7;
        // ORDERING(guest-tso): every x86 load is an acquire.
        let low = slot.word(gpa).load(Ordering::Acquire);
        let bits = u32::from(size) * 8;
        let shift = offset as u32 * 8;
        let mut value = low >> shift;
        if shift + bits > 64 {
            // ORDERING(guest-tso): as above; a misaligned access is two loads.
            value |= slot.word(Gpa::new(gpa.get() + 8)).load(Ordering::Acquire) << (64 - shift);
        }
        Some(if bits == 64 { value } else { value & ((1 << bits) - 1) })
    }

    /// Guest store of `size` bytes (1, 2, 4 or 8) inside one page; false where no slot has it.
    #[inline]
    pub(crate) fn store(&self, gpa: Gpa, value: u64, size: u8) -> bool {
        let Some(slot) = self.slot(gpa.gfn()) else { return false };
        let bits = u32::from(size) * 8;
        let shift = (gpa.get() & 7) as u32 * 8;
        if bits == 64 && shift == 0 {
            // ORDERING(guest-tso): every x86 store is a release.
            slot.word(gpa).store(value, Ordering::Release);
            return true;
        }
        let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        merge(slot.word(gpa), mask << shift, value << shift);
        if shift + bits > 64 {
            let over = 64 - shift;
            merge(slot.word(Gpa::new(gpa.get() + 8)), mask >> over, (value & mask) >> over);
        }
        true
    }
}

/// Stores the bits of `mask`, leaving the others as they are; the word before and after.
#[inline]
pub(crate) fn merge(word: &AtomicU64, mask: u64, value: u64) -> (u64, u64) {
    if mask == u64::MAX {
        // ORDERING(guest-tso): as below; no neighbour is to be kept.
        return (word.swap(value, Ordering::Release), value);
    }
    // ORDERING(guest-tso): a release like every store; the loop only keeps the neighbouring bytes.
    let mut old = word.load(Ordering::Relaxed);
    loop {
        let new = (old & !mask) | (value & mask);
        // ORDERING(guest-tso): see above.
        match word.compare_exchange_weak(old, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return (old, new),
            Err(now) => old = now,
        }
    }
}

/// Guest memory, looked for first in one slot: of the tables of a guest most are in the slot of its root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Near<'m> {
    memory: &'m GuestMemory,
    base: Gfn,
    frames: &'m [[AtomicU64; ENTRIES]],
}

impl GuestMemory {
    /// Looks first in the slot that has `gfn`.
    #[inline]
    pub(crate) fn near(&self, gfn: Gfn) -> Near<'_> {
        let (base, frames) =
            self.slot(gfn).map_or((Gfn::new(0), &[][..]), |slot| (slot.base(), slot.words().as_chunks().0));
        Near { memory: self, base, frames }
    }
}

impl<'m> TableMemory for Near<'m> {
    type Place<'a>
        = &'m AtomicU64
    where
        Self: 'a;

    #[inline]
    fn place(&self, gpa: Gpa) -> Option<&'m AtomicU64> {
        self.frame(gpa.gfn()).map(|frame| Self::place_in(frame, gpa))
    }

    #[inline]
    fn load(place: &'m AtomicU64) -> u64 {
        <GuestMemory as TableMemory>::load(place)
    }

    #[inline]
    fn prefetch(place: &'m AtomicU64) {
        <GuestMemory as TableMemory>::prefetch(place);
    }

    #[inline(never)]
    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> Update {
        self.memory.update_entry(gpa, old, new)
    }

    fn update_half(&self, gpa: Gpa, old: u32, new: u32) -> Update {
        self.memory.update_half(gpa, old, new)
    }
}

impl<'m> FrameMemory for Near<'m> {
    type Frame<'a>
        = &'m [AtomicU64; ENTRIES]
    where
        Self: 'a;

    #[inline]
    fn frame(&self, gfn: Gfn) -> Option<&'m [AtomicU64; ENTRIES]> {
        let frame = self.frames.get(gfn.get().wrapping_sub(self.base.get()) as usize);
        if frame.is_some() { frame } else { far(self.memory, gfn) }
    }

    #[inline]
    fn place_in<'a>(frame: &'m [AtomicU64; ENTRIES], gpa: Gpa) -> &'m AtomicU64
    where
        Self: 'a,
    {
        &frame[(gpa.offset() >> 3) as usize]
    }
}

#[inline(never)]
fn far(memory: &GuestMemory, gfn: Gfn) -> Option<&[AtomicU64; ENTRIES]> {
    memory.slot(gfn).map(|slot| &slot.words().as_chunks().0[slot.frame(gfn)])
}

impl TableMemory for GuestMemory {
    type Place<'a> = &'a AtomicU64;

    #[inline]
    fn place(&self, gpa: Gpa) -> Option<&AtomicU64> {
        self.word(gpa)
    }

    #[inline]
    fn load(place: &AtomicU64) -> u64 {
        // ORDERING(guest-tso): a walk sees tables in the order in which the guest wrote them.
        place.load(Ordering::Acquire)
    }

    #[inline]
    fn prefetch(place: &AtomicU64) {
        hint::prefetch(place);
    }

    #[inline]
    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> Update {
        let word = match self.updatable(gpa) {
            Ok(word) => word,
            Err(refused) => return refused,
        };
        // ORDERING(guest-tso): A/D updates are locked operations on the hardware (E105).
        match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Update::Done,
            Err(_) => Update::Changed,
        }
    }

    fn update_half(&self, gpa: Gpa, old: u32, new: u32) -> Update {
        let word = match self.updatable(gpa) {
            Ok(word) => word,
            Err(refused) => return refused,
        };
        let shift = (gpa.get() & 4) * 8;
        // ORDERING(guest-tso): only the value to compare with; the exchange below carries the order.
        let mut seen = word.load(Ordering::Relaxed);
        while (seen >> shift) as u32 == old {
            let wanted = seen & !(0xffff_ffff << shift) | u64::from(new) << shift;
            // ORDERING(guest-tso): as `update_entry`; a change of the other half is no reason to fail.
            match word.compare_exchange_weak(seen, wanted, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Update::Done,
                Err(now) => seen = now,
            }
        }
        Update::Changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::new(&[MemoryRegion::ram(Gpa::new(0), 0x4000), MemoryRegion::rom(Gpa::new(0x10000), 0x1000)], 46)
            .unwrap()
    }

    #[test]
    fn loads_and_stores_of_every_size_and_offset_keep_their_neighbours() {
        let memory = memory();
        for size in [1_u8, 2, 4, 8] {
            for offset in 0..16 {
                for word in 0..4 {
                    assert!(memory.store(Gpa::new(word * 8), 0x1111_1111_1111_1111, 8));
                }
                let value = 0xfedc_ba98_7654_3210 & if size == 8 { u64::MAX } else { (1 << (size * 8)) - 1 };
                assert!(memory.store(Gpa::new(offset), value, size));
                assert_eq!(memory.load(Gpa::new(offset), size), Some(value));
                let mut bytes = [0; 32];
                memory.read(Gpa::new(0), &mut bytes).unwrap();
                let mut expected = [0x11_u8; 32];
                expected[offset as usize..offset as usize + size as usize]
                    .copy_from_slice(&value.to_le_bytes()[..size as usize]);
                assert_eq!(bytes, expected);
            }
        }
    }

    #[test]
    fn ranges_outside_slots_are_refused_with_their_address() {
        let memory = memory();
        let mut out = [0; 16];
        assert_eq!(memory.read(Gpa::new(0x3ff8), &mut out), Err(Error::NoSlot { gpa: Gpa::new(0x3ff8), len: 16 }));
        assert!(memory.read(Gpa::new(u64::MAX), &mut out).is_err());
        assert!(!memory.store(Gpa::new(0x4000), 1, 8));
        assert_eq!(memory.load(Gpa::new(0x8000), 8), None);
    }

    #[test]
    fn e107_entries_in_read_only_slots_are_not_updated() {
        let memory = memory();
        for (gpa, expected) in [(0x10008, Update::ReadOnly), (0x8, Update::Done), (0x8000, Update::Changed)] {
            let gpa = Gpa::new(gpa);
            assert_eq!(memory.update_entry(gpa, 0, 0x20), expected);
            assert_eq!(memory.update_half(Gpa::new(gpa.get() + 4), 0, 0x40), expected);
            assert_eq!(
                memory.update_entry(gpa, 1, 2),
                if expected == Update::ReadOnly { expected } else { Update::Changed }
            );
            let now =
                (expected != Update::Changed).then_some(if expected == Update::Done { 0x40_0000_0020 } else { 0 });
            assert_eq!(memory.read_entry(gpa), now);
        }
    }

    #[test]
    fn bad_slots_are_refused_and_change_nothing() {
        let memory = memory();
        for (gpa, bytes) in
            [(1, 0x1000), (0x20000, 0), (0x20000, 7), (0x3000, 0x1000), (1 << 46, 0x1000), (u64::MAX - 0xfff, 0x2000)]
        {
            assert!(
                matches!(memory.add(MemoryRegion::ram(Gpa::new(gpa), bytes)), Err(Error::Memslot { .. })),
                "{gpa:#x}"
            );
        }
        assert_eq!(memory.iter().count(), 2);
        assert!(GuestMemory::new(&[], 46).is_err());
    }
}
