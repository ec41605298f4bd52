//! Addresses and indices as newtypes, so that a guest frame can never be used where a host frame is meant.
//!
//! KVM: `gva_t`, `gpa_t`, `gfn_t`, `hpa_t`, `kvm_pfn_t`.

use core::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Entries in one table page of 64-bit paging, and in one shadow page.
pub const ENTRIES: usize = 512;
/// Most roots of four entries of a vCPU: the current one and as many previous ones as there can be.
pub const PAE_TABLES: usize = 17;
/// The physical-address field of an entry: bits 51:12.
pub const PHYS_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Host frame of guest frame 0: not 0, so that a mixed-up frame number shows.
pub const RAM_BASE_PFN: u64 = 1 << 34;
/// Host frame of shadow page 0.
pub const SHADOW_BASE_PFN: u64 = 1 << 36;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw value.
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw value.
            #[inline]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

newtype!(
    /// A guest virtual (linear) address.
    Gva,
    "gva"
);
newtype!(
    /// A guest physical address.
    Gpa,
    "gpa"
);
newtype!(
    /// A guest frame number: a [`Gpa`] without its low 12 bits.
    Gfn,
    "gfn"
);
newtype!(
    /// A host physical address; for a shadow page, the address that a non-leaf SPTE or the hardware CR3 holds.
    Hpa,
    "hpa"
);
newtype!(
    /// A host frame number.
    Pfn,
    "pfn"
);

impl Gva {
    /// The page number, all 52 bits of it.
    #[inline]
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// The offset in the 4 KiB page.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// The address as an instruction outside long mode forms it: 32 bits.
    #[inline]
    #[must_use]
    pub const fn truncated(self) -> Gva {
        Gva(self.0 & 0xffff_ffff)
    }

    /// The GiB that the address lies in, 0..=3 for 32-bit addresses: which PDPTR translates it.
    #[inline]
    pub const fn gib(self) -> usize {
        (self.0 >> 30 & 3) as usize
    }

    /// Whether bits 63:`bits`-1 are all equal (SDM vol. 1, 3.3.7.1). `bits` is 48 or 57.
    #[inline]
    pub const fn is_canonical(self, bits: u32) -> bool {
        let shift = 64 - bits;
        ((self.0 << shift).cast_signed() >> shift).cast_unsigned() == self.0
    }
}

impl Gpa {
    /// The frame that contains this address.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The offset in the 4 KiB frame.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl Gfn {
    /// The address of the frame's first byte.
    #[inline]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }

    /// The host frame that backs this guest frame (if a memslot has it).
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 + RAM_BASE_PFN)
    }

    /// The frame rounded down to the start of what one entry of a table at `level` covers.
    #[inline]
    #[must_use]
    pub const fn round_down(self, level: Level) -> Gfn {
        Gfn(self.0 & !(level.frames_per_entry() - 1))
    }
}

impl Pfn {
    /// The guest frame behind a RAM host frame.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0.wrapping_sub(RAM_BASE_PFN))
    }
}

impl Hpa {
    /// A root that is not there: all ones, as KVM's `INVALID_PAGE`.
    pub const INVALID: Hpa = Hpa(u64::MAX);
    /// The shared empty root of a pgd outside memory (E016).
    pub const DUMMY_ROOT: Hpa = Hpa((SHADOW_BASE_PFN - 1) << PAGE_SHIFT);

    /// The root of a vCPU without long mode: no shadow page, but four entries that lead to one each (E043). The first of several.
    pub const PAE_ROOT: Hpa = Hpa((SHADOW_BASE_PFN - 2) << PAGE_SHIFT);

    /// Whether this names a root at all.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 != u64::MAX
    }

    /// Whether this is the dummy root, which has no shadow page.
    #[inline]
    pub const fn is_dummy(self) -> bool {
        self.0 == Self::DUMMY_ROOT.0
    }

    /// The root of four entries whose table has this number, below [`PAE_TABLES`]: one after the other downwards.
    #[inline]
    #[must_use]
    pub const fn pae_root(table: usize) -> Hpa {
        Hpa(Self::PAE_ROOT.0 - ((table as u64) << PAGE_SHIFT))
    }

    /// Whether this is a root of four entries, which has no shadow page either.
    #[inline]
    pub const fn is_pae(self) -> bool {
        self.0 <= Self::PAE_ROOT.0 && self.0 >= Self::pae_root(PAE_TABLES - 1).0
    }

    /// The number of the table of a root of four entries.
    #[inline]
    pub const fn pae_table(self) -> Option<usize> {
        if self.is_pae() { Some(((Self::PAE_ROOT.0 - self.0) >> PAGE_SHIFT) as usize) } else { None }
    }

    /// The shadow page at this address, `None` for an invalid, the dummy or a PAE root.
    #[inline]
    pub const fn shadow_page(self) -> Option<SpId> {
        let pfn = self.0 >> PAGE_SHIFT;
        if pfn >= SHADOW_BASE_PFN && self.is_valid() { Some(SpId((pfn - SHADOW_BASE_PFN) as u32)) } else { None }
    }
}

/// A level of a page table: 1 = PT (4 KiB entries) up to 5 = PML5.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Level(u8);

impl Level {
    /// The level of 4 KiB leaves.
    pub const PT: Level = Level(1);
    /// The level of 2 MiB leaves.
    pub const PD: Level = Level(2);
    /// The level of 1 GiB leaves.
    pub const PDPT: Level = Level(3);
    /// The root of 4-level paging.
    pub const PML4: Level = Level(4);
    /// The root of 5-level paging.
    pub const PML5: Level = Level(5);

    /// The level with this number.
    ///
    /// # Panics
    /// If `number` is not in 1..=5.
    #[inline]
    pub const fn new(number: u8) -> Level {
        assert!(number >= 1 && number <= 5, "a paging level is 1..=5");
        Level(number)
    }

    /// The number, 1..=5.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// As an array index, 1..=5.
    #[inline]
    pub const fn at(self) -> usize {
        self.0 as usize
    }

    /// The next level down.
    ///
    /// # Panics
    /// At level 1: a walk must end there whatever bit 7 says (F-30).
    #[inline]
    #[must_use]
    pub const fn down(self) -> Level {
        assert!(self.0 > 1, "no level below the page table");
        Level(self.0 - 1)
    }

    /// Whether leaves of this level map 4 KiB.
    #[inline]
    pub const fn is_last(self) -> bool {
        self.0 == 1
    }

    /// Index of the entry for `gva` in a table of this level.
    #[inline]
    pub const fn index(self, gva: Gva) -> usize {
        ((gva.0 >> (PAGE_SHIFT + 9 * (self.0 as u32 - 1))) & 511) as usize
    }

    /// 4 KiB frames that one entry of this level covers.
    #[inline]
    pub const fn frames_per_entry(self) -> u64 {
        1 << (9 * (self.0 as u32 - 1))
    }
}

/// A shadow page by its number in the arena. KVM: `struct kvm_mmu_page *`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct SpId(u32);

impl SpId {
    /// Wraps a number.
    #[inline]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// As an array index.
    #[inline]
    pub const fn at(self) -> usize {
        self.0 as usize
    }

    /// The address of the page's 512 SPTEs.
    #[inline]
    pub const fn hpa(self) -> Hpa {
        Hpa((SHADOW_BASE_PFN + self.0 as u64) << PAGE_SHIFT)
    }
}

/// One SPTE: its shadow page and index. KVM: `u64 *sptep`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteRef {
    /// The shadow page.
    pub sp: SpId,
    /// The entry, 0..512.
    pub index: u16,
}

impl SpteRef {
    /// The entry `index` of `sp`.
    #[inline]
    pub const fn new(sp: SpId, index: usize) -> Self {
        Self { sp, index: index as u16 }
    }

    /// As an array index.
    #[inline]
    pub const fn at(self) -> usize {
        self.index as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e116_canonical_means_sign_extended_from_bit_47_or_56() {
        assert!(Gva::new(0x7fff_ffff_ffff).is_canonical(48));
        assert!(!Gva::new(0x8000_0000_0000).is_canonical(48));
        assert!(Gva::new(0x8000_0000_0000).is_canonical(57));
        assert!(Gva::new(0xffff_8000_0000_0000).is_canonical(48));
        assert!(!Gva::new(0xff7f_ffff_ffff_ffff).is_canonical(48));
        assert!(!Gva::new(0x0100_0000_0000_0000).is_canonical(57));
        assert!(Gva::new(0xff00_0000_0000_0000).is_canonical(57));
    }

    #[test]
    fn hpa_names_the_shadow_page_or_none() {
        assert_eq!(SpId::new(7).hpa().shadow_page(), Some(SpId::new(7)));
        assert_eq!(Hpa::INVALID.shadow_page(), None);
        assert_eq!(Hpa::DUMMY_ROOT.shadow_page(), None);
        assert_eq!(Hpa::PAE_ROOT.shadow_page(), None);
        assert!(Hpa::PAE_ROOT.is_valid() && Hpa::PAE_ROOT.is_pae() && !Hpa::DUMMY_ROOT.is_pae());
        let last = Hpa::pae_root(PAE_TABLES - 1);
        assert_eq!((Hpa::PAE_ROOT.pae_table(), last.pae_table()), (Some(0), Some(16)));
        for other in [Hpa::DUMMY_ROOT, Hpa::INVALID, Hpa::default(), SpId::new(0).hpa(), Hpa::pae_root(17)] {
            assert_eq!(other.pae_table(), None);
        }
    }

    #[test]
    fn level_indexes_nine_bits_each() {
        let gva = Gva::new((1 << 48) | (2 << 39) | (3 << 30) | (4 << 21) | (5 << 12) | 0xabc);
        assert_eq!([5, 4, 3, 2, 1].map(|l| Level::new(l).index(gva)), [1, 2, 3, 4, 5]);
    }
}
