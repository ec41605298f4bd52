//! The role word of a shadow page: what, beside the gfn, decides its content.
//!
//! KVM: `union kvm_mmu_page_role` (C.1). Two pages of one gfn with different words never share.

use crate::{access::Access, addr::Level};

/// A role word, bit for bit KVM's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(transparent)]
pub struct PageRole(u32);

const LEVEL: u32 = 0xf;
const QUADRANT: u32 = 3 << 5;
const DIRECT: u32 = 1 << 7;
const ACCESS_SHIFT: u32 = 8;
const ACCESS: u32 = 7 << ACCESS_SHIFT;
const INVALID: u32 = 1 << 11;
const EFER_NX: u32 = 1 << 12;
const CR0_WP: u32 = 1 << 13;
const SMEP_ANDNOT_WP: u32 = 1 << 14;
const SMAP_ANDNOT_WP: u32 = 1 << 15;
const PASSTHROUGH: u32 = 1 << 18;

/// Bits in which a page must agree with the vCPU's root role to be synced by it (C.5, F-37).
pub const ROLE_SYNC_MASK: u32 = !(LEVEL | ACCESS | QUADRANT | PASSTHROUGH);

/// The guest state that goes into a root's role (A.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoleInputs {
    /// Level of the root: 4, or 5 with CR4.LA57.
    pub level: Level,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
}

impl PageRole {
    /// The role that a root has now.
    pub fn root(inputs: RoleInputs) -> Self {
        let mut word = u32::from(inputs.level.get()) | (u32::from(Access::all().bits()) << ACCESS_SHIFT) | EFER_NX;
        if inputs.wp {
            word |= CR0_WP;
        } else {
            word |= if inputs.smep { SMEP_ANDNOT_WP } else { 0 };
            word |= if inputs.smap { SMAP_ANDNOT_WP } else { 0 };
        }
        Self(word)
    }

    /// The role of a child one level down. `invalid` is never inherited (F-05).
    #[must_use]
    pub fn child(self, access: Access, direct: Directness) -> Self {
        let word = self.0 & !(LEVEL | ACCESS | DIRECT | INVALID);
        let direct = match direct {
            Directness::Direct => DIRECT,
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

    /// Whether the page maps a linear range instead of shadowing a guest table.
    #[inline]
    pub const fn is_direct(self) -> bool {
        self.0 & DIRECT != 0
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
    /// It maps a linear range of guest frames.
    Direct,
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUTS: RoleInputs = RoleInputs { level: Level::PML4, wp: true, smep: true, smap: true };

    #[test]
    fn c1_root_role_word_is_kvms() {
        assert_eq!(PageRole::root(INPUTS).word(), 4 | 7 << 8 | 1 << 12 | 1 << 13);
        let wp0 = PageRole::root(RoleInputs { wp: false, ..INPUTS });
        assert_eq!(wp0.word(), 4 | 7 << 8 | 1 << 12 | 1 << 14 | 1 << 15);
    }

    #[test]
    fn f05_child_role_does_not_inherit_invalid() {
        let parent = PageRole::root(INPUTS).invalidated();
        let child = parent.child(Access::USER, Directness::Direct);
        assert!(!child.is_invalid() && child.is_direct());
        assert_eq!((child.level(), child.access()), (Level::PDPT, Access::USER));
    }

    #[test]
    fn f37_sync_is_refused_across_modes_only() {
        let root = PageRole::root(INPUTS);
        let leaf = root.child(Access::all(), Directness::Indirect);
        assert!(root.may_sync(leaf.child(Access::USER, Directness::Indirect)));
        let other = PageRole::root(RoleInputs { wp: false, ..INPUTS }).child(Access::all(), Directness::Indirect);
        assert!(!root.may_sync(other));
        assert!(!root.may_sync(leaf.invalidated()));
    }
}
