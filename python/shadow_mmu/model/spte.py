"""Shadow page-table entries: the words that the hardware walks (C.2).

A non-present entry is 0. A link to a lower page has all rights (they live in leaves and in roles); a leaf has them all
spelled out, with two software bits: host-writable, and MMU-writable (nothing write-protects the page on the MMU's behalf).
"""

from typing import Final

from .constants import (
    ACC_U,
    ACC_W,
    ACC_X,
    KEY_MASK,
    KEY_SHIFT,
    PAGE_SHIFT,
    PFN_MASK,
    RAM_BASE_PFN,
    SHADOW_BASE_PFN,
)

P: Final = 1
W: Final = 1 << 1
U: Final = 1 << 2
A: Final = 1 << 5
D: Final = 1 << 6
HOST_WRITABLE: Final = 1 << 9
"""The memslot is not read-only."""
MMU_WRITABLE: Final = 1 << 10
SHADOW_PRESENT: Final = 1 << 11
NX: Final = 1 << 63
LINK_BITS: Final = P | W | U | A | SHADOW_PRESENT
WRITABLE: Final = W | MMU_WRITABLE | D
"""What a leaf with write permission has more: it is dirty from the start."""


def page_hpa(page_id: int) -> int:
    """Return the host-physical address of a shadow page."""
    return (SHADOW_BASE_PFN + page_id) << PAGE_SHIFT


def page_id(spte_or_hpa: int) -> int:
    """Return the shadow page that a link or a root leads to."""
    return ((spte_or_hpa & PFN_MASK) >> PAGE_SHIFT) - SHADOW_BASE_PFN


def read_only_leaf(gfn: int, access: int, key: int, *, accessed: bool) -> int:
    """Return a leaf for a guest frame with the U and X rights of ``access``, its protection key, and no W."""
    spte = P | HOST_WRITABLE | SHADOW_PRESENT | (gfn + RAM_BASE_PFN) << PAGE_SHIFT
    spte |= key << KEY_SHIFT
    return spte | (A if accessed else 0) | (U if access & ACC_U else 0) | (0 if access & ACC_X else NX)


def combined(gfn: int, access: int, key: int, *, dirty: bool) -> int:
    """Return what a TLB keeps of a translation in two dimensions: the frame; rights, key and D of the guest's own entries."""
    spte = P | A | (gfn + RAM_BASE_PFN) << PAGE_SHIFT | (D if dirty else 0) | key << KEY_SHIFT
    return spte | (W if access & ACC_W else 0) | (U if access & ACC_U else 0) | (0 if access & ACC_X else NX)


def leaf_gfn(spte: int) -> int:
    """Return the guest frame that a leaf maps."""
    return ((spte & PFN_MASK) >> PAGE_SHIFT) - RAM_BASE_PFN


def key_of(spte: int) -> int:
    """Return the protection key of a leaf."""
    return spte >> KEY_SHIFT & KEY_MASK


def loses_write(old: int, new: int) -> bool:
    """Whether the change leaves stale rights in TLBs: MMU-writable was set and is clear now (C.2)."""
    return bool(old & ~new & MMU_WRITABLE)
