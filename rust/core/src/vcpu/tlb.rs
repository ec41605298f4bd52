//! The software TLB that stands for the hardware's: set-associative, deterministic, flushed in O(1).
//!
//! docs/machine.md, 5. The model in Python keeps the same entries in the same slots.

use bytemuck::Zeroable;

use crate::error::{Error, Result};

/// Most slots of a set.
const MAX_WAYS: usize = 12;
/// Bits of the tag that hold the page number plus one.
const PAGE_BITS: u32 = 53;

/// One vCPU's TLB: page numbers to leaf SPTEs.
pub struct Tlb {
    ways: usize,
    sets: usize,
    /// `sets - 1` where that is a mask.
    mask: Option<u64>,
    tags: Box<[u64]>,
    values: Box<[u64]>,
    pointers: Box<[u8]>,
    /// Tags of another generation are empty slots: bumping it flushes everything.
    generation: u64,
    full_flushes: u64,
}

impl core::fmt::Debug for Tlb {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Tlb({} sets of {}, {} valid)", self.sets, self.ways, self.iter().count())
    }
}

impl Tlb {
    /// A TLB of `entries` slots; none if 0. Its memory costs nothing until it is used.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(entries: usize) -> Result<Self> {
        let ways = (1..=MAX_WAYS).rev().find(|ways| entries.is_multiple_of(*ways)).unwrap_or(1).min(entries.max(1));
        let sets = entries / ways;
        Ok(Self {
            ways,
            sets,
            mask: sets.is_power_of_two().then(|| sets as u64 - 1),
            tags: zeroed(entries)?,
            values: zeroed(entries)?,
            pointers: zeroed(sets)?,
            generation: 0,
            full_flushes: 0,
        })
    }

    #[inline]
    fn set_of(&self, page: u64) -> usize {
        match self.mask {
            Some(mask) => (page & mask) as usize,
            None => (page % self.sets as u64) as usize,
        }
    }

    /// Generation in the high bits, page number plus one in the low ones: never 0, so a zeroed slot is empty.
    #[inline]
    fn tag(&self, page: u64) -> u64 {
        self.generation << PAGE_BITS | (page + 1)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "every access looks, and a call costs as much as the look")]
    fn slot(&self, page: u64) -> Option<usize> {
        let start = self.set_of(page) * self.ways;
        let tag = self.tag(page);
        let set = &self.tags[start..start + self.ways];
        // As many ways as most TLBs have, known to the compiler: comparisons in a row, no loop.
        let way = match set.as_array::<MAX_WAYS>() {
            Some(set) => set.iter().position(|&t| t == tag),
            None => set.iter().position(|&t| t == tag),
        };
        way.map(|way| start + way)
    }

    /// The entry of a page.
    #[inline]
    pub fn lookup(&self, page: u64) -> Option<u64> {
        if self.sets == 0 {
            return None;
        }
        self.slot(page).map(|slot| self.values[slot])
    }

    /// Puts in the entry of a page that has none, as after a lookup in vain: over the slot at the set's pointer.
    #[inline]
    pub fn fill(&mut self, page: u64, value: u64) {
        if self.sets == 0 {
            return;
        }
        debug_assert!(self.slot(page).is_none(), "page {page:#x} has an entry");
        let set = self.set_of(page);
        let way = usize::from(self.pointers[set]);
        self.pointers[set] = if way + 1 == self.ways { 0 } else { way as u8 + 1 };
        let slot = set * self.ways + way;
        self.tags[slot] = self.tag(page);
        self.values[slot] = value;
    }

    /// Drops one page. INVLPG.
    #[inline(never)]
    pub fn drop_page(&mut self, page: u64) {
        if self.sets != 0
            && let Some(slot) = self.slot(page)
        {
            self.tags[slot] = 0;
        }
    }

    /// Drops everything, in O(1) but for one time in 2,047.
    #[inline]
    pub fn flush(&mut self) {
        self.full_flushes += 1;
        self.generation += 1;
        if self.generation >> (64 - PAGE_BITS) != 0 {
            self.generation = 0;
            self.tags.fill(0);
        }
    }

    /// Times that everything was dropped.
    pub const fn full_flushes(&self) -> u64 {
        self.full_flushes
    }

    /// The valid entries: (page number, value).
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.slots().filter_map(|(page, value)| page.map(|page| (page, value)))
    }

    /// Number of sets.
    pub const fn sets(&self) -> usize {
        self.sets
    }

    /// Each set: its pointer and its slots.
    pub fn set(&self, set: usize) -> (u8, impl Iterator<Item = (Option<u64>, u64)> + '_) {
        (self.pointers[set], self.slots().skip(set * self.ways).take(self.ways))
    }

    fn slots(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.tags.iter().zip(&self.values).map(|(&tag, &value)| {
            let page = tag & ((1 << PAGE_BITS) - 1);
            if page != 0 && tag >> PAGE_BITS == self.generation { (Some(page - 1), value) } else { (None, 0) }
        })
    }
}

fn zeroed<T: Zeroable>(count: usize) -> Result<Box<[T]>> {
    let bytes = (count * size_of::<T>()) as u64;
    bytemuck::try_zeroed_slice_box(count).map_err(|()| Error::OutOfMemory { what: "a TLB", bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_is_the_largest_divisor_up_to_twelve() {
        for (entries, ways, sets) in [(1536, 12, 128), (8, 8, 1), (13, 1, 13), (26, 2, 13), (1, 1, 1), (0, 1, 0)] {
            let tlb = Tlb::new(entries).unwrap();
            assert_eq!((tlb.ways, tlb.sets), (ways, sets), "{entries}");
        }
    }

    #[test]
    fn replacement_is_round_robin_and_survives_flushes() {
        let mut tlb = Tlb::new(2).unwrap();
        tlb.fill(1, 11);
        tlb.fill(2, 22);
        assert_eq!((tlb.lookup(1), tlb.lookup(2)), (Some(11), Some(22)));
        tlb.fill(3, 33);
        assert_eq!((tlb.lookup(1), tlb.lookup(2), tlb.lookup(3)), (None, Some(22), Some(33)));
        tlb.flush();
        assert_eq!(tlb.iter().count(), 0);
        tlb.fill(5, 55);
        assert_eq!(tlb.set(0).0, 0, "the pointer went on from 1");
        tlb.drop_page(5);
        assert_eq!(tlb.lookup(5), None);
    }

    #[test]
    fn a_generation_that_wraps_brings_nothing_back() {
        let mut tlb = Tlb::new(4).unwrap();
        for page in 0..5000 {
            tlb.fill(page, page);
            tlb.flush();
            assert_eq!(tlb.iter().count(), 0, "{page}");
        }
        tlb.fill((1 << 52) - 1, 7);
        assert_eq!(tlb.lookup((1 << 52) - 1), Some(7));
        assert_eq!(tlb.full_flushes(), 5000);
    }

    #[test]
    fn no_entries_keep_nothing() {
        let mut tlb = Tlb::new(0).unwrap();
        tlb.fill(1, 1);
        assert_eq!(tlb.lookup(1), None);
        tlb.drop_page(1);
    }
}
