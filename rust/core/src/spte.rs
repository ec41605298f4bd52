//! Shadow page-table entries, in the format that the hardware walks (C.2, non-EPT).

use crate::{
    access::{Access, ProtectionKey},
    addr::{Hpa, PHYS_MASK, Pfn, SpId},
};

/// A shadow page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub(crate) struct Spte(u64);

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const HOST_WRITABLE: u64 = 1 << 9;
const MMU_WRITABLE: u64 = 1 << 10;
const SHADOW_PRESENT: u64 = 1 << 11;
const NX: u64 = 1 << 63;

/// How a leaf's accessed bit starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Young {
    /// Accessed: a fault or a sync put it there.
    Accessed,
    /// Not accessed yet: a refill put it there.
    Idle,
}

impl Spte {
    /// Not present.
    pub(crate) const EMPTY: Spte = Spte(0);

    /// What a write protection takes away: W and MMU-writable.
    pub(crate) const WRITE_BITS: u64 = WRITABLE | MMU_WRITABLE;

    /// A link to a lower shadow page: all rights, since rights live in leaves and roles.
    pub(crate) const fn link(child: SpId) -> Spte {
        Spte(child.hpa().get() | PRESENT | WRITABLE | USER | ACCESSED | SHADOW_PRESENT)
    }

    /// A leaf without write permission.
    pub(crate) fn leaf(pfn: Pfn, access: Access, young: Young) -> Spte {
        let mut raw = PRESENT | HOST_WRITABLE | SHADOW_PRESENT | ((pfn.get() << 12) & PHYS_MASK);
        raw |= if young == Young::Accessed { ACCESSED } else { 0 };
        raw |= if access.contains(Access::USER) { USER } else { 0 };
        raw |= if access.contains(Access::EXEC) { 0 } else { NX };
        Spte(raw)
    }

    /// The leaf of a page that the host lets nobody write: one in a read-only memslot.
    #[must_use]
    pub(crate) const fn host_read_only(self) -> Spte {
        Spte(self.0 & !HOST_WRITABLE)
    }

    /// What a TLB keeps of a translation in two dimensions: the host frame, and the rights and the D of the guest's own entries.
    pub(crate) fn combined(pfn: Pfn, access: Access, dirty: bool) -> Spte {
        let mut raw = PRESENT | ACCESSED | ((pfn.get() << 12) & PHYS_MASK);
        raw |= if access.contains(Access::WRITE) { WRITABLE } else { 0 };
        raw |= if access.contains(Access::USER) { USER } else { 0 };
        raw |= if access.contains(Access::EXEC) { 0 } else { NX };
        Spte(raw | if dirty { DIRTY } else { 0 })
    }

    /// The leaf of a page with this protection key.
    #[must_use]
    pub(crate) const fn with_key(self, key: ProtectionKey) -> Spte {
        Spte(self.0 | key.entry_bits())
    }

    /// The protection key of a leaf.
    #[inline]
    pub(crate) const fn key(self) -> ProtectionKey {
        ProtectionKey::of_entry(self.0)
    }

    /// The leaf with write permission: W, MMU-writable and D (a W entry is dirty from the start).
    #[must_use]
    pub(crate) const fn writable(self) -> Spte {
        Spte(self.0 | WRITABLE | MMU_WRITABLE | DIRTY)
    }

    /// The leaf write-protected because it maps a guest table.
    #[must_use]
    pub(crate) const fn write_protected(self) -> Spte {
        Spte(self.0 & !Self::WRITE_BITS)
    }

    /// Wraps a raw entry.
    #[inline]
    pub(crate) const fn from_raw(raw: u64) -> Spte {
        Spte(raw)
    }

    /// The raw entry.
    #[inline]
    pub(crate) const fn raw(self) -> u64 {
        self.0
    }

    /// Whether the hardware finds something here.
    #[inline]
    pub(crate) const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether user mode may use the page.
    #[inline]
    pub(crate) const fn is_user(self) -> bool {
        self.0 & USER != 0
    }

    /// Whether the hardware may write through it.
    #[inline]
    pub(crate) const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// Whether the MMU lets the page be written (no write protection on its behalf).
    #[inline]
    pub(crate) const fn is_mmu_writable(self) -> bool {
        self.0 & MMU_WRITABLE != 0
    }

    /// Whether the host lets the page be written.
    #[inline]
    pub(crate) const fn is_host_writable(self) -> bool {
        self.0 & HOST_WRITABLE != 0
    }

    /// The rights that the hardware finds in a leaf.
    #[inline]
    pub(crate) const fn access(self) -> Access {
        let exec = (self.0 >> 63 & 1) ^ 1;
        Access::from_bits_truncate((exec | self.0 & (WRITABLE | USER)) as u8)
    }

    /// What decides whether the hardware lets an access through a leaf, in one byte: NX, W, U, A, D, and bits that are no matter.
    #[inline]
    pub(crate) const fn told(self) -> u8 {
        self.0.rotate_left(1) as u8
    }

    /// Where [`told`](Self::told) has these rights; that to execute is there as NX, inverted.
    pub(crate) const fn told_rights(access: Access) -> u8 {
        let exec = if access.contains(Access::EXEC) { NX } else { 0 };
        Spte(exec | access.bits() as u64 & (WRITABLE | USER)).told()
    }

    /// Where it has A, and for a write D.
    pub(crate) const fn told_use(write: bool) -> u8 {
        Spte(if write { ACCESSED | DIRTY } else { ACCESSED }).told()
    }

    /// A and D bits that an access needs and that are still clear.
    #[inline]
    pub(crate) const fn missing_ad(self, write: bool) -> u64 {
        let need = if write { ACCESSED | DIRTY } else { ACCESSED };
        need & !self.0
    }

    /// The host frame that a leaf maps.
    #[inline]
    pub(crate) const fn pfn(self) -> Pfn {
        Pfn::new((self.0 & PHYS_MASK) >> 12)
    }

    /// The shadow page that a link leads to.
    #[inline]
    pub(crate) const fn child(self) -> Option<SpId> {
        if self.is_present() { Hpa::new(self.0 & PHYS_MASK).shadow_page() } else { None }
    }

    /// Whether changing `self` to `new` leaves stale rights in TLBs: MMU-writable was set and is cleared (C.2).
    #[inline]
    pub(crate) const fn loses_write(self, new: Spte) -> bool {
        self.is_mmu_writable() && !new.is_mmu_writable()
    }
}

impl core::fmt::Debug for Spte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "spte:{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Gfn;

    #[test]
    fn c2_leaf_bits_are_those_of_the_recorded_kernel() {
        // real KVM 6.1: a25 for a clean read-only leaf, e67 for a writable one, a05 for a refill.
        let low = |spte: Spte| spte.raw() & 0xfff;
        let pfn = Gfn::new(0x180).pfn();
        let leaf = Spte::leaf(pfn, Access::all(), Young::Accessed);
        assert_eq!((low(leaf), low(leaf.writable())), (0xa25, 0xe67));
        assert_eq!(low(Spte::leaf(pfn, Access::all(), Young::Idle)), 0xa05);
        assert_eq!(leaf.pfn(), pfn);
        assert_eq!(low(leaf.writable().write_protected()), 0xa65);
    }

    #[test]
    fn c2_link_has_all_rights_and_leads_to_its_child() {
        let link = Spte::link(SpId::new(3));
        assert_eq!(link.raw() & 0xfff, 0x827);
        assert_eq!(link.child(), Some(SpId::new(3)));
        assert_eq!(Spte::EMPTY.child(), None);
    }
}
