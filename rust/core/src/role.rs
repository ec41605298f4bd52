//! The role word of a shadow page: what, beside the gfn, decides its content.
//!
//! KVM: `union kvm_mmu_page_role` (C.1). Two pages of one gfn with different words never share.

use core::ops::Range;

use crate::{
    access::{Access, ProtectionKey},
    addr::{ENTRIES, Gfn, Gpa, Level},
    regs::PagingMode,
};

/// A role word: KVM's bits in their places, and three fields of this machine's own above them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct PageRole(u32);

const LEVEL: u32 = 0xf;
/// Levels of the tables that two-dimensional paging has for guest-physical addresses.
const TDP_LEVEL: u32 = 4;
const FOUR_BYTE: u32 = 1 << 4;
const QUADRANT_SHIFT: u32 = 5;
const QUADRANT: u32 = 3 << QUADRANT_SHIFT;
const DIRECT: u32 = 1 << 7;
const ACCESS_SHIFT: u32 = 8;
const ACCESS: u32 = 7 << ACCESS_SHIFT;
const INVALID: u32 = 1 << 11;
const EFER_NX: u32 = 1 << 12;
const CR0_WP: u32 = 1 << 13;
const SMEP_ANDNOT_WP: u32 = 1 << 14;
const SMAP_ANDNOT_WP: u32 = 1 << 15;
const PASSTHROUGH: u32 = 1 << 18;
// Fields that KVM has not, 0 in what its guests do. It gives no protection keys to a guest on shadow page tables; and it lets a 32-bit
// guest that changes CR4.PSE find the pages of before, whose large entries mean something else by then.
const KEY_SHIFT: u32 = 19;
const KEY: u32 = 15 << KEY_SHIFT;
const PKE_ANDNOT_WP: u32 = 1 << 23;
const NO_PSE: u32 = 1 << 24;

/// Bits in which a page must agree with the vCPU's root role to be synced by it (C.5, F-37).
pub const ROLE_SYNC_MASK: u32 = !(LEVEL | ACCESS | QUADRANT | PASSTHROUGH);

/// The guest state that goes into a root's role (A.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one register bit")]
pub struct RoleInputs {
    /// The guest's paging mode.
    pub mode: PagingMode,
    /// CR4.PSE, which only 32-bit paging asks about.
    pub pse: bool,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// Protection keys are in force.
    pub keys: bool,
}

impl PageRole {
    /// The role that a root has now. Without long mode the shadow has three levels, the first of which is no page (E043).
    pub fn root(inputs: RoleInputs) -> Self {
        let level = u32::from(inputs.mode.levels().max(3));
        let mut word = level | (u32::from(Access::all().bits()) << ACCESS_SHIFT) | EFER_NX;
        match inputs.mode {
            PagingMode::None => return Self(word | DIRECT),
            PagingMode::Bits32 => word |= FOUR_BYTE | if inputs.pse { 0 } else { NO_PSE },
            PagingMode::Pae | PagingMode::Long4 | PagingMode::Long5 => {}
        }
        if inputs.wp {
            word |= CR0_WP;
        } else {
            word |= if inputs.smep { SMEP_ANDNOT_WP } else { 0 };
            word |= if inputs.smap { SMAP_ANDNOT_WP } else { 0 };
            word |= if inputs.keys { PKE_ANDNOT_WP } else { 0 };
        }
        Self(word)
    }

    /// The role of a root of two-dimensional paging, whatever the guest's mode (A.8): it maps guest-physical memory as it is, with
    /// all rights.
    pub const fn tdp() -> Self {
        Self(TDP_LEVEL | ACCESS | DIRECT | EFER_NX | CR0_WP)
    }

    /// The role of the page that entry `entry` of a PAE root leads to, where this is the root's role (E043).
    #[must_use]
    pub fn pae_root(self, entry: usize) -> Self {
        let quadrant = if self.has_four_byte_entries() { (entry as u32) << QUADRANT_SHIFT } else { 0 };
        Self(self.0 & !LEVEL | 2 | quadrant)
    }

    /// The role of the child at entry `index`, one level down. `invalid` is never inherited (F-05).
    ///
    /// A table of 4-byte entries has 1,024 of them: two pages shadow it, told apart by the quadrant (E131).
    #[must_use]
    pub fn child(self, access: Access, direct: Directness, index: usize) -> Self {
        let mut word = self.0 & !(LEVEL | ACCESS | DIRECT | INVALID | KEY);
        if self.has_four_byte_entries() {
            word = word & !QUADRANT | (index as u32 & 1) << QUADRANT_SHIFT;
        }
        let direct = match direct {
            Directness::Direct(key) => DIRECT | u32::from(key.number()) << KEY_SHIFT,
            Directness::Indirect => 0,
        };
        Self(word | u32::from(self.level().down().get()) | (u32::from(access.bits()) << ACCESS_SHIFT) | direct)
    }

    /// Wraps a word.
    #[inline]
    pub(crate) const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The word.
    #[inline]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// Level of the page's entries.
    #[inline]
    pub const fn level(self) -> Level {
        Level::new((self.0 & LEVEL) as u8)
    }

    /// Rights inherited from the entries above.
    #[inline]
    pub const fn access(self) -> Access {
        Access::from_bits_truncate(((self.0 & ACCESS) >> ACCESS_SHIFT) as u8)
    }

    /// Whether the guest table behind the page has 4-byte entries.
    #[inline]
    pub const fn has_four_byte_entries(self) -> bool {
        self.0 & FOUR_BYTE != 0
    }

    /// Whether bit 7 of an entry above level 1 makes it large: not in 32-bit paging with CR4.PSE clear.
    #[inline]
    pub const fn has_large_entries(self) -> bool {
        self.0 & NO_PSE == 0
    }

    /// Which half or quarter of a table of 4-byte entries the page shadows.
    #[inline]
    const fn quadrant(self) -> usize {
        ((self.0 & QUADRANT) >> QUADRANT_SHIFT) as usize
    }

    /// Address of the guest entry that entry `index` of the shadow of the table at `gfn` is made from.
    ///
    /// At level 2 two entries are made from one 4-byte entry, which covers 4 MiB.
    #[inline]
    pub(crate) const fn entry_gpa(self, gfn: Gfn, index: usize) -> Gpa {
        let offset = if self.has_four_byte_entries() {
            ((self.quadrant() * ENTRIES + index) >> (self.level().get() - 1)) << 2
        } else {
            index << 3
        };
        Gpa::new(gfn.gpa().get() | offset as u64)
    }

    /// The entries that are made from the guest entry at `offset` in its table; none if another quadrant shadows it (C.6).
    #[inline]
    pub(crate) const fn entries_at(self, offset: u64) -> Range<usize> {
        if !self.has_four_byte_entries() {
            let index = (offset >> 3) as usize;
            return index..index + 1;
        }
        let doubled = self.level().get() - 1;
        let first = ((offset >> 2) as usize) << doubled;
        if first / ENTRIES != self.quadrant() {
            return 0..0;
        }
        first % ENTRIES..first % ENTRIES + (1 << doubled)
    }

    /// Whether the page maps a linear range instead of shadowing a guest table.
    #[inline]
    pub const fn is_direct(self) -> bool {
        self.0 & DIRECT != 0
    }

    /// Protection key of what a direct page maps.
    #[inline]
    pub const fn key(self) -> ProtectionKey {
        ProtectionKey::new((self.0 >> KEY_SHIFT) as u8)
    }

    /// Whether the page belongs to a context with CR0.WP set.
    #[inline]
    pub const fn has_wp(self) -> bool {
        self.0 & CR0_WP != 0
    }

    /// Whether the page was zapped.
    #[inline]
    pub const fn is_invalid(self) -> bool {
        self.0 & INVALID != 0
    }

    /// The same role, zapped.
    #[must_use]
    pub const fn invalidated(self) -> Self {
        Self(self.0 | INVALID)
    }

    /// Whether a vCPU with this root role may sync a page of role `page`.
    #[inline]
    pub const fn may_sync(self, page: PageRole) -> bool {
        (self.0 ^ page.0) & ROLE_SYNC_MASK == 0
    }
}

/// Whether a shadow page has a guest table behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Directness {
    /// It shadows one guest table.
    Indirect,
    /// It maps a linear range of guest frames, all with the key of the large page that it splits.
    Direct(ProtectionKey),
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: RoleInputs =
        RoleInputs { mode: PagingMode::Long4, pse: true, wp: true, smep: true, smap: true, keys: false };

    #[test]
    fn c1_root_role_word_is_kvms() {
        assert_eq!(PageRole::root(INPUTS).word(), 4 | 7 << 8 | 1 << 12 | 1 << 13);
        let wp0 = PageRole::root(RoleInputs { wp: false, ..INPUTS });
        assert_eq!(wp0.word(), 4 | 7 << 8 | 1 << 12 | 1 << 14 | 1 << 15);
    }

    #[test]
    fn e024_only_32_bit_paging_asks_about_pse_and_a_child_inherits_it() {
        for (mode, differ) in [
            (PagingMode::None, false),
            (PagingMode::Bits32, true),
            (PagingMode::Pae, false),
            (PagingMode::Long4, false),
            (PagingMode::Long5, false),
        ] {
            let [with, without] =
                [true, false].map(|pse| PageRole::root(RoleInputs { mode, pse, ..INPUTS }).pae_root(1));
            assert_eq!(with != without, differ, "{mode:?}");
            assert_eq!((with.has_large_entries(), without.has_large_entries()), (true, !differ));
            let child = without.child(Access::USER, Directness::Indirect, 0);
            assert_eq!(child.has_large_entries(), !differ, "{mode:?}");
            assert_eq!(with.may_sync(child), without.may_sync(child) && !differ, "{mode:?}");
        }
    }

    #[test]
    fn e131_four_quadrants_of_a_directory_and_two_of_a_table_of_4_byte_entries() {
        let root = PageRole::root(RoleInputs { mode: PagingMode::Bits32, ..INPUTS });
        assert_eq!(root.word(), 3 | 1 << 4 | 7 << 8 | 1 << 12 | 1 << 13);
        for offset in (0..4096_u64).step_by(4) {
            let directories: Vec<_> = (0..4).map(|q| root.pae_root(q)).collect();
            let tables = [0, 1].map(|index| directories[3].child(Access::all(), Directness::Indirect, index));
            for (pages, entries) in [(&directories[..], 2), (&tables[..], 1)] {
                let made: Vec<_> = pages.iter().map(|role| role.entries_at(offset)).collect();
                assert_eq!(made.iter().map(ExactSizeIterator::len).sum::<usize>(), entries);
                for (role, range) in pages.iter().zip(made) {
                    for index in range {
                        assert_eq!(role.entry_gpa(Gfn::new(9), index).get(), 0x9000 + offset);
                    }
                }
            }
        }
    }

    #[test]
    fn e042_without_paging_the_root_is_direct() {
        let root = PageRole::root(RoleInputs { mode: PagingMode::None, ..INPUTS });
        assert_eq!(root.word(), 3 | 1 << 7 | 7 << 8 | 1 << 12);
        assert_eq!(root.pae_root(2).word(), 2 | 1 << 7 | 7 << 8 | 1 << 12);
    }

    #[test]
    fn e044_a_root_of_two_dimensional_paging_has_one_role() {
        assert_eq!(PageRole::tdp().word(), 4 | 1 << 7 | 7 << 8 | 1 << 12 | 1 << 13);
        let leaf = PageRole::tdp().child(Access::all(), Directness::Direct(ProtectionKey::NONE), 5);
        assert_eq!(leaf.word(), 3 | 1 << 7 | 7 << 8 | 1 << 12 | 1 << 13);
    }

    #[test]
    fn f05_child_role_does_not_inherit_invalid() {
        let parent = PageRole::root(INPUTS).invalidated();
        let child = parent.child(Access::USER, Directness::Direct(ProtectionKey::new(9)), 7);
        assert!(!child.is_invalid() && child.is_direct());
        assert_eq!((child.level(), child.access(), child.key().number()), (Level::PDPT, Access::USER, 9));
        assert_eq!(child.child(Access::USER, Directness::Indirect, 0).key(), ProtectionKey::NONE);
    }

    #[test]
    fn f37_sync_is_refused_across_modes_only() {
        let root = PageRole::root(INPUTS);
        let leaf = root.child(Access::all(), Directness::Indirect, 0);
        assert!(root.may_sync(leaf.child(Access::USER, Directness::Indirect, 0)));
        let other = PageRole::root(RoleInputs { wp: false, ..INPUTS }).child(Access::all(), Directness::Indirect, 0);
        assert!(!root.may_sync(other));
        assert!(!root.may_sync(leaf.invalidated()));
    }
}
