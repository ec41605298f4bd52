//! The half of a shadow page that only the holder of the `mmu_lock` sees.
//!
//! KVM: the rest of `struct kvm_mmu_page` (C.1).

use smallvec::SmallVec;

use super::root_refs::RootRefs;
use crate::{
    access::Access,
    addr::{ENTRIES, Gfn, SpteRef},
    role::PageRole,
};

/// Which children of a page are, or lead to, unsync pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Bitmap512([u64; 8]);

impl Bitmap512 {
    /// Sets a bit; whether it was clear.
    pub(crate) fn set(&mut self, index: usize) -> bool {
        let word = &mut self.0[index / 64];
        let was = *word;
        *word |= 1 << (index % 64);
        was != *word
    }

    /// Clears a bit; whether it was set.
    pub(crate) fn clear(&mut self, index: usize) -> bool {
        let word = &mut self.0[index / 64];
        let was = *word;
        *word &= !(1 << (index % 64));
        was != *word
    }

    /// Whether the bit is set.
    pub(crate) const fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 != 0
    }

    /// The first set bit at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let mut at = from;
        while at < ENTRIES {
            let word = self.0[at / 64] >> (at % 64);
            if word != 0 {
                return Some(at + word.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Number of set bits.
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The eight words.
    pub(crate) const fn words(&self) -> &[u64; 8] {
        &self.0
    }
}

/// Where a shadow page stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// The number is not in use.
    Free,
    /// In use and found by lookups.
    Active,
    /// Zapped, but still some vCPU's root (E149).
    PinnedInvalid,
    /// Zapped and waiting for the flush that lets it be freed.
    Zapped,
}

/// The locked half of a shadow page.
#[derive(Debug)]
pub(crate) struct SpLocked {
    /// Where it stands.
    pub life: Life,
    /// Gfn of the guest table, or first gfn mapped.
    pub gfn: Gfn,
    /// Role word.
    pub role: PageRole,
    /// References by vCPUs' current and previous roots.
    pub root_refs: RootRefs,
    /// Non-leaf SPTEs that lead here. KVM: `parent_ptes`.
    pub parents: SmallVec<[SpteRef; 2]>,
    /// Children that are or lead to unsync pages.
    pub unsync_bitmap: Bitmap512,
    /// `gfn << 12 | access` of each leaf, for indirect pages. KVM: `shadowed_translation`.
    recorded: Option<Box<[u64; ENTRIES]>>,
}

impl SpLocked {
    /// A number never used.
    pub(crate) fn unused() -> Self {
        Self {
            life: Life::Free,
            gfn: Gfn::new(0),
            role: PageRole::from_word(1),
            root_refs: RootRefs::NONE,
            parents: SmallVec::new(),
            unsync_bitmap: Bitmap512::default(),
            recorded: None,
        }
    }

    /// Starts a new life.
    pub(crate) fn begin(&mut self, gfn: Gfn, role: PageRole) {
        self.life = Life::Active;
        self.gfn = gfn;
        self.role = role;
        self.root_refs = RootRefs::NONE;
        self.parents.clear();
        self.unsync_bitmap = Bitmap512::default();
    }

    /// Records what leaf `index` maps. For a direct page both follow from gfn and role.
    #[inline]
    pub(crate) fn record(&mut self, index: usize, gfn: Gfn, access: Access) {
        if !self.role.is_direct() {
            self.recorded.get_or_insert_with(|| Box::new([0; ENTRIES]))[index] =
                gfn.gpa().get() | u64::from(access.bits());
        }
    }

    /// Whether translations are recorded, which costs a page of memory.
    pub(crate) const fn has_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// The gfn that leaf `index` maps.
    #[inline]
    pub(crate) fn entry_gfn(&self, index: usize) -> Gfn {
        match &self.recorded {
            Some(recorded) if !self.role.is_direct() => Gfn::new(recorded[index] >> 12),
            _ => Gfn::new(self.gfn.get() + index as u64 * self.role.level().frames_per_entry()),
        }
    }

    /// The rights that leaf `index` was made with.
    #[inline]
    pub(crate) fn entry_access(&self, index: usize) -> Access {
        match &self.recorded {
            Some(recorded) if !self.role.is_direct() => Access::from_bits_truncate(recorded[index] as u8),
            _ => self.role.access(),
        }
    }

    /// Removes one parent, moving the last into its place.
    pub(crate) fn remove_parent(&mut self, parent: SpteRef) {
        if let Some(at) = self.parents.iter().position(|&p| p == parent) {
            self.parents.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_counts_and_finds_in_order() {
        let mut bitmap = Bitmap512::default();
        for bit in [0, 63, 64, 300, 511] {
            assert!(bitmap.set(bit));
            assert!(!bitmap.set(bit));
        }
        let found: Vec<_> = core::iter::successors(bitmap.next(0), |&b| bitmap.next(b + 1)).collect();
        assert_eq!(found, [0, 63, 64, 300, 511]);
        assert!(bitmap.clear(64) && !bitmap.clear(64) && !bitmap.contains(64));
        assert_eq!(bitmap.count(), 4);
    }
}
