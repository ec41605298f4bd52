//! Reserved bits of guest entries, as data (B.4).

use super::{PTE_LARGE, PTE_NX, PTE_PRESENT};
use crate::addr::Level;

/// Reserved-bit masks for one setting of MAXPHYADDR and EFER.NX, indexed by level and by bit 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ReservedBits {
    masks: [[u64; 2]; 6],
    /// By level: P, what is reserved without bit 7, and bit 7 where it has a meaning.
    odd: [u64; 6],
}

/// Bits `high`:`low`.
const fn bits(high: u32, low: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

impl ReservedBits {
    /// The masks of 64-bit entries of 4- and 5-level paging. Without 1 GiB pages bit 7 of a PDPTE is reserved.
    pub(crate) const fn long_mode(maxphyaddr: u8, nx: bool, gib_pages: bool) -> Self {
        let high = bits(51, maxphyaddr as u32) | if nx { 0 } else { PTE_NX };
        let mut masks = [[high; 2]; 6];
        masks[2][1] = high | bits(20, 13);
        masks[3][1] = high | if gib_pages { bits(29, 13) } else { PTE_LARGE };
        masks[4] = [high | PTE_LARGE; 2];
        masks[5] = [high | PTE_LARGE; 2];
        Self::of(masks)
    }

    /// The masks of PAE paging: bits up to 62 are reserved, and only level 2 has large pages.
    pub(crate) const fn pae(maxphyaddr: u8, nx: bool) -> Self {
        let high = bits(62, maxphyaddr as u32) | if nx { 0 } else { PTE_NX };
        let mut masks = [[high; 2]; 6];
        masks[2][1] = high | bits(20, 13);
        Self::of(masks)
    }

    /// The masks of 32-bit paging: PSE-36 is of 36 bits whatever MAXPHYADDR is; nothing without CR4.PSE, where bit 7 is ignored.
    pub(crate) const fn bits32(pse: bool, pse36: bool) -> Self {
        let mut masks = [[0; 2]; 6];
        masks[2][1] = if pse { bits(21, if pse36 { 17 } else { 13 }) } else { 0 };
        Self::of(masks)
    }

    const fn of(masks: [[u64; 2]; 6]) -> Self {
        let mut odd = [0; 6];
        let mut level = 1;
        while level < 6 {
            odd[level] = PTE_PRESENT | masks[level][0] | if level > 1 { PTE_LARGE } else { 0 };
            level += 1;
        }
        Self { masks, odd }
    }

    /// Whether `pte` is what nearly every entry is: present, with no reserved bit, above level 1 without bit 7. One comparison.
    #[inline]
    pub(crate) const fn is_plain(&self, pte: u64, level: Level) -> bool {
        (pte ^ PTE_PRESENT) & self.odd[level.at()] == 0
    }

    /// The bits by which an entry of this level is not plain, P inverted.
    #[inline]
    pub(crate) const fn odd(&self, level: Level) -> u64 {
        self.odd[level.at()]
    }

    /// Whether `pte`, found at `level`, has a reserved bit set.
    #[inline]
    pub(crate) const fn violates(&self, pte: u64, level: Level) -> bool {
        let large = (pte & PTE_LARGE != 0 && !level.is_last()) as usize;
        pte & self.masks[level.at()][large] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e108_each_reserved_bit_of_pae_and_of_32_bit_entries() {
        for bit in 0..64_u32 {
            for (maxphyaddr, nx) in [(36_u8, true), (46, true), (52, false)] {
                let rules = ReservedBits::pae(maxphyaddr, nx);
                let high = (bit < 63 && bit >= u32::from(maxphyaddr)) || (bit == 63 && !nx);
                assert_eq!(rules.violates(1 | 1 << bit, Level::PT), high, "level 1 bit {bit}");
                let large = high || (13..=20).contains(&bit);
                assert_eq!(rules.violates(1 | PTE_LARGE | 1 << bit, Level::PD), large, "large bit {bit}");
            }
            let large = PTE_LARGE | 1 << bit;
            for (pse36, low) in [(true, 17), (false, 13)] {
                let rules = ReservedBits::bits32(true, pse36);
                assert_eq!(rules.violates(large, Level::PD), (low..=21).contains(&bit), "4M bit {bit} {pse36}");
                assert!(!rules.violates(large, Level::PT));
                assert!(!ReservedBits::bits32(false, pse36).violates(large, Level::PD));
            }
        }
    }

    /// Every bit of every level, large or not, against the table of B.4 written out once more.
    #[test]
    fn e108_each_reserved_bit_of_each_level() {
        let settings =
            [36_u8, 40, 46, 52].map(|width| [false, true].map(|nx| [false, true].map(|gib| (width, nx, gib))));
        for (maxphyaddr, nx, gib_pages) in settings.into_iter().flatten().flatten() {
            let rules = ReservedBits::long_mode(maxphyaddr, nx, gib_pages);
            for level in 1..=5_u8 {
                for (large, bit) in (0..64_u32).flat_map(|bit| [(false, bit), (true, bit)]) {
                    let pte = 1 | if large { PTE_LARGE } else { 0 } | 1 << bit;
                    let is_large = pte & PTE_LARGE != 0 && level > 1;
                    let mut reserved = (52 > bit && bit >= u32::from(maxphyaddr)) || (bit == 63 && !nx);
                    reserved |= level >= 4 && pte & PTE_LARGE != 0;
                    reserved |= is_large && level == 2 && (13..=20).contains(&bit);
                    reserved |= is_large && level == 3 && (!gib_pages || (13..=29).contains(&bit));
                    assert_eq!(
                        rules.violates(pte, Level::new(level)),
                        reserved,
                        "level {level} bit {bit} large {large} width {maxphyaddr} nx {nx} gib {gib_pages}"
                    );
                    let plain = !reserved && (level == 1 || pte & PTE_LARGE == 0);
                    assert_eq!(rules.is_plain(pte, Level::new(level)), plain, "level {level} bit {bit} large {large}");
                    assert!(!rules.is_plain(pte & !PTE_PRESENT, Level::new(level)));
                }
            }
        }
    }
}
