//! What one guest table entry looks like: its width, how many a table has, and what is odd about a large one (B.1).

use crate::addr::{Gfn, Gpa, Gva, Level, PHYS_MASK};

/// What became of the A and D bits that a walk wants in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Update {
    /// They are set.
    Done,
    /// The entry no longer held what the walk read.
    Changed,
    /// The guest may not write the table: its entry stays as it is, and the walk goes on (E107).
    ReadOnly,
}

/// Where guest tables live.
pub(crate) trait TableMemory {
    /// The place of an entry, known before it is read.
    type Place<'a>: Copy
    where
        Self: 'a;

    /// The place of the 8-byte word that contains `gpa`; `None` where no memslot has it.
    fn place(&self, gpa: Gpa) -> Option<Self::Place<'_>>;
    /// Reads the word with Acquire.
    fn load(place: Self::Place<'_>) -> u64;
    /// Says that the word is about to be read: a hint.
    #[inline]
    fn prefetch(_: Self::Place<'_>) {}
    /// Replaces the 8-byte entry by compare-and-exchange.
    fn update_entry(&self, gpa: Gpa, old: u64, new: u64) -> Update;
    /// As [`update_entry`](Self::update_entry) for 4 bytes; the entry beside it may change meanwhile.
    fn update_half(&self, gpa: Gpa, old: u32, new: u32) -> Update;

    /// Reads the 8-byte entry at `gpa`.
    #[inline]
    fn read_entry(&self, gpa: Gpa) -> Option<u64> {
        self.place(gpa).map(Self::load)
    }
}

/// Where guest tables live by the frame: an entry of a frame that was found needs no further check.
pub(crate) trait FrameMemory: TableMemory {
    /// A frame.
    type Frame<'a>: Copy
    where
        Self: 'a;

    /// The frame, `None` where no memslot has it.
    fn frame(&self, gfn: Gfn) -> Option<Self::Frame<'_>>;
    /// The place of the word that contains `gpa`, of which the offset in the frame counts.
    fn place_in<'a>(frame: Self::Frame<'a>, gpa: Gpa) -> Self::Place<'a>
    where
        Self: 'a;
}

/// One entry format. The two implementations are all there are; the walk is written once over this.
pub(crate) trait EntryFormat {
    /// Bytes of an entry.
    const BYTES: u64;
    /// Bits of a linear address that index one table.
    const INDEX_BITS: u32;

    /// The entry at `gpa` in the word that contains it.
    fn of_word(word: u64, gpa: Gpa) -> u64;
    /// Replaces an entry.
    fn update(memory: &impl TableMemory, gpa: Gpa, old: u64, new: u64) -> Update;
    /// Frame bits of a large entry that do not stand where an address stands.
    fn odd_frame_bits(pte: u64) -> u64;

    /// Reads an entry.
    #[inline]
    fn read(memory: &impl TableMemory, gpa: Gpa) -> Option<u64> {
        memory.read_entry(gpa).map(|word| Self::of_word(word, gpa))
    }

    /// Address of the entry for `gva` in the table at `table`.
    #[inline]
    fn entry_gpa(table: Gfn, level: Level, gva: Gva) -> Gpa {
        let shift = Self::INDEX_BITS * u32::from(level.get() - 1);
        let index = (gva.page() >> shift) & ((1 << Self::INDEX_BITS) - 1);
        Gpa::new(table.gpa().get() | (index * Self::BYTES))
    }

    /// The frame that a leaf at `level` maps `gva` to (B.2 step 7).
    #[inline]
    fn target(pte: u64, level: Level, gva: Gva) -> Gfn {
        let within = (1 << (Self::INDEX_BITS * u32::from(level.get() - 1))) - 1;
        let base = Gpa::new(pte & PHYS_MASK).gfn().get() & !within;
        let odd = if level.is_last() { 0 } else { Self::odd_frame_bits(pte) };
        Gfn::new(base | odd | gva.page() & within)
    }
}

/// 8-byte entries: PAE, 4- and 5-level paging.
pub(crate) enum Pte64 {}

impl EntryFormat for Pte64 {
    const BYTES: u64 = 8;
    const INDEX_BITS: u32 = 9;

    #[inline]
    fn of_word(word: u64, _: Gpa) -> u64 {
        word
    }

    #[inline]
    fn update(memory: &impl TableMemory, gpa: Gpa, old: u64, new: u64) -> Update {
        memory.update_entry(gpa, old, new)
    }

    #[inline]
    fn odd_frame_bits(_: u64) -> u64 {
        0
    }
}

/// 4-byte entries: 32-bit paging.
pub(crate) enum Pte32 {}

impl EntryFormat for Pte32 {
    const BYTES: u64 = 4;
    const INDEX_BITS: u32 = 10;

    #[inline]
    fn of_word(word: u64, gpa: Gpa) -> u64 {
        word >> ((gpa.get() & 4) * 8) & 0xffff_ffff
    }

    #[inline]
    fn update(memory: &impl TableMemory, gpa: Gpa, old: u64, new: u64) -> Update {
        memory.update_half(gpa, old as u32, new as u32)
    }

    /// PSE-36: bits 16:13 of a 4 MiB entry are address bits 35:32 (E102).
    #[inline]
    fn odd_frame_bits(pte: u64) -> u64 {
        (pte >> 13 & 0xf) << 20
    }
}

/// Reads the entry that a shadow page with or without 4-byte guest entries is made from.
#[inline]
pub(crate) fn read_as(memory: &impl TableMemory, four_byte: bool, gpa: Gpa) -> Option<u64> {
    if four_byte { Pte32::read(memory, gpa) } else { Pte64::read(memory, gpa) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e102_a_4_mib_page_above_4_gib_by_pse_36() {
        let pte = 0x1234_5000_u64 & 0xffc0_0000 | 0x5 << 13 | 0x83;
        let target = Pte32::target(pte, Level::PD, Gva::new(0x0012_3456));
        assert_eq!(target.get(), 0x5 << 20 | 0x1200_0000 >> 12 | 0x123);
    }

    #[test]
    fn b1_entries_of_4_bytes_are_1024_a_table() {
        let gva = Gva::new(0xffc0_1abc);
        assert_eq!(Pte32::entry_gpa(Gfn::new(5), Level::PD, gva).get(), 0x5000 + 1023 * 4);
        assert_eq!(Pte32::entry_gpa(Gfn::new(5), Level::PT, gva).get(), 0x5000 + 4);
        assert_eq!(Pte64::entry_gpa(Gfn::new(5), Level::PT, gva).get(), 0x5000 + 8);
    }
}
