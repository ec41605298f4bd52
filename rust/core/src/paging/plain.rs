//! What nearly every entry of a page table is, told by one comparison: most of many looks need no more ([`batch`](super::batch)).

use super::{
    PTE_NX, PTE_PRESENT,
    step::{Asked, Rights, WalkContext},
};
use crate::addr::Level;

/// A leaf that is present, with no reserved bit, no key that is denied, and the rights that an access needs. An entry that is none may
/// permit the access all the same: [`step`](super::step::step) says.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct PlainLeaf {
    mask: u64,
    /// What is left of it under the mask.
    told: u64,
}

impl PlainLeaf {
    /// Where no leaf permits the access.
    const NONE: Self = Self { mask: 0, told: 1 };

    /// Whether `pte` is one.
    #[inline]
    pub(super) const fn is(self, pte: u64) -> bool {
        pte & self.mask == self.told
    }
}

/// What makes a plain leaf for one kind of access, whatever the entries above.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainLeaves {
    /// Bits that are 0, but P.
    odd: u64,
    /// Rights that must be there, and such that must not.
    set: u64,
    clear: u64,
    leaf_rights_only: bool,
}

impl PlainLeaves {
    /// For this access.
    #[inline]
    pub(super) const fn new(context: &WalkContext<'_>, asked: Asked) -> Self {
        Self {
            odd: context.reserved.odd(Level::PT) | asked.denied_keys.odd(),
            set: asked.needed.0,
            clear: asked.counts.0 & !asked.needed.0,
            leaf_rights_only: context.leaf_rights_only,
        }
    }

    #[inline]
    const fn above(&self, rights: Rights) -> u64 {
        if cfg!(feature = "mutants") && self.leaf_rights_only { Rights::ALL.0 } else { rights.0 }
    }

    /// Whether `pte`, found under these rights, is one.
    #[inline]
    pub(super) const fn has(&self, rights: Rights, pte: u64) -> bool {
        let wrong = (self.above(rights) & Rights::of(pte).0 ^ self.set) & (self.set | self.clear);
        (pte ^ PTE_PRESENT) & self.odd | wrong == 0
    }

    /// What one is in a table that was reached with these rights.
    #[inline]
    pub(super) const fn under(&self, rights: Rights) -> PlainLeaf {
        let above = self.above(rights);
        // A right that an entry above has not, no entry gives; and some must be both there and not, where key 0 is denied.
        if self.set & (!above | self.odd & !PTE_NX) != 0 {
            return PlainLeaf::NONE;
        }
        // What must not be there and is not, above, may be in the entry.
        let clear = self.clear & above;
        PlainLeaf { mask: self.odd | self.set | clear, told: PTE_PRESENT | self.set & !PTE_NX | clear & PTE_NX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Access, AccessFlags, AccessKind},
        addr::Gva,
        paging::{
            PermissionRules, ReservedBits,
            format::{EntryFormat, Pte32, Pte64},
            step::{Step, step},
        },
        regs::{ControlRegs, PagingMode},
    };

    const CR4_KEYS: u64 = 1 << 22;

    /// Register settings: CR0.WP, CR4.SMEP and SMAP, EFER.NXE, and PKRUs that deny nothing, key 1, writes to key 1, key 0.
    fn registers() -> impl Iterator<Item = ControlRegs> {
        (0..16 * 5_u32).map(|case| {
            let on = |bit: u32, value: u64| if case >> bit & 1 != 0 { value } else { 0 };
            let (keys, pkru) =
                [(0, 0), (CR4_KEYS, 0), (CR4_KEYS, 0b0100), (CR4_KEYS, 0b1000), (CR4_KEYS, 0b01)][(case / 16) as usize];
            ControlRegs {
                cr0: 0x8000_0001 | on(0, 1 << 16),
                cr4: 0x20 | on(1, 1 << 20) | on(2, 1 << 21) | keys,
                efer: 0x500 | on(3, 1 << 11),
                pkru,
                ..ControlRegs::default()
            }
        })
    }

    /// Entries with every value of the bits that decide: P, W, U, bit 7, two reserved in some modes, those of two keys, NX.
    fn entries() -> impl Iterator<Item = u64> {
        (0..1_u32 << 9).map(|case| {
            let bits = [0, 1, 2, 7, 50, 57, 59, 60, 63].into_iter().enumerate();
            0x1234_5000 | bits.fold(0, |pte, (at, bit)| pte | u64::from(case >> at & 1) << bit)
        })
    }

    fn compare<F: EntryFormat>(mode: PagingMode, reserved: &ReservedBits, regs: &ControlRegs) -> [usize; 2] {
        let mut count = [0; 2];
        let rules = PermissionRules::guest(regs);
        let context = WalkContext {
            mode,
            largest: Level::PD,
            reserved,
            rules,
            keyed: false,
            keep_write_when_clean: false,
            leaf_rights_only: false,
        };
        let gva = Gva::new(0x7654_3210);
        for kind in [AccessKind::Read, AccessKind::Write, AccessKind::Fetch] {
            for flags in (0..8).map(AccessFlags::from_bits_truncate) {
                let asked = Asked::new(rules, kind, flags);
                let plain = PlainLeaves::new(&context, asked);
                for rights in (0..8).map(|bits| Rights::from(Access::from_bits_truncate(bits))) {
                    for pte in entries() {
                        let case = (regs, kind, flags, rights, pte);
                        let is = plain.has(rights, pte);
                        assert_eq!(plain.under(rights).is(pte), is, "{case:x?}");
                        let found = step::<F>(&context, asked, gva, Level::PT, rights, pte);
                        if is {
                            let Ok(Step::Leaf(gfn, _)) = found else { panic!("{case:x?}: {found:x?}") };
                            assert_eq!(gfn, F::target(pte, Level::PT, gva));
                        } else if regs.pkru == 0 {
                            assert!(found.is_err(), "not plain, without a key: {case:x?}");
                        }
                        count[usize::from(is)] += 1;
                    }
                }
            }
        }
        count
    }

    /// All settings, kinds, qualifiers, rights above and entries: what is plain permits the access, and where no key is denied nothing
    /// else does.
    #[test]
    fn e108_e110_e111_plain_leaves_are_those_that_a_step_permits() {
        let mut count = [0; 2];
        for regs in registers() {
            let nx = regs.efer >> 11 & 1 != 0;
            for [none, some] in [
                compare::<Pte64>(PagingMode::Long4, &ReservedBits::long_mode(46, nx, true), &regs),
                compare::<Pte64>(PagingMode::Long4, &ReservedBits::long_mode(52, nx, true), &regs),
                compare::<Pte64>(PagingMode::Pae, &ReservedBits::pae(46, nx), &regs),
                compare::<Pte32>(PagingMode::Bits32, &ReservedBits::bits32(true, true), &regs),
            ] {
                count = [count[0] + none, count[1] + some];
            }
        }
        assert!(count[1] > 100_000, "{count:?} that are not and are plain");
    }
}
