"""The role word of a shadow page: what, beside its gfn, decides what it maps (C.1)."""

from typing import Final

from .constants import ACC_ALL, INDEX, PAGE_SHIFT
from .permissions import Context
from .registers import PagingMode

LEVEL_MASK: Final = 0xF
FOUR_BYTE: Final = 1 << 4
"""has_4_byte_gpte: the page shadows a half, or a quarter, of a table of 4-byte entries (E131)."""
QUADRANT_SHIFT: Final = 5
QUADRANT_MASK: Final = 3 << QUADRANT_SHIFT
DIRECT: Final = 1 << 7
ACCESS_SHIFT: Final = 8
ACCESS_MASK: Final = ACC_ALL << ACCESS_SHIFT
INVALID: Final = 1 << 11
EFER_NX: Final = 1 << 12
CR0_WP: Final = 1 << 13
SMEP_ANDNOT_WP: Final = 1 << 14
SMAP_ANDNOT_WP: Final = 1 << 15
KEY_SHIFT: Final = 19
KEY_MASK: Final = 15 << KEY_SHIFT
"""Protection key of what a direct page maps. KVM has not this field nor the next two: it gives shadow paging no keys."""
PKE_ANDNOT_WP: Final = 1 << 23
NO_PSE: Final = 1 << 24
"""32-bit paging with CR4.PSE clear: bit 7 of an entry means nothing there, and a page of before must not be found."""
SYNC_MASK: Final = ~(LEVEL_MASK | QUADRANT_MASK | ACCESS_MASK | 1 << 18) & 0xFFFFFFFF
"""Bits in which a page must agree with the vCPU's root role to be synced: all but level, quadrant, access, passthrough."""


def root_role(context: Context) -> int:
    """Return the role of a root that a vCPU in this context would use (A.8)."""
    role = max(context.mode.value, 3) | ACCESS_MASK | EFER_NX
    if context.mode is PagingMode.NONE:
        return role | DIRECT
    if context.mode is PagingMode.BITS32:
        role |= FOUR_BYTE | (NO_PSE if context.largest == 1 else 0)
    if context.wp:
        return role | CR0_WP
    role |= PKE_ANDNOT_WP if context.keys else 0
    return role | (SMEP_ANDNOT_WP if context.smep else 0) | (SMAP_ANDNOT_WP if context.smap else 0)


TDP_ROLE: Final = 4 | ACCESS_MASK | DIRECT | EFER_NX | CR0_WP
"""The role of a root of two-dimensional paging, whatever the guest's mode: it maps guest-physical memory as it is (A.8)."""


def pae_root_role(root: int, entry: int) -> int:
    """Return the role of the page that one of a PAE root's four entries leads to (E043)."""
    return root & ~LEVEL_MASK | 2 | (entry << QUADRANT_SHIFT if root & FOUR_BYTE else 0)


def child_role(parent: int, access: int, *, direct: bool, index: int, key: int = 0) -> int:
    """Return the role of the page that entry ``index`` leads to; ``invalid`` is never inherited (F-05).

    ``key`` is the protection key of the large page that a direct child splits.

    Of 4-byte entries a table has 1,024: its shadow is two pages, told apart by the quadrant (E131).
    """
    role = parent & ~(LEVEL_MASK | DIRECT | ACCESS_MASK | INVALID | KEY_MASK) | key << KEY_SHIFT
    if parent & FOUR_BYTE:
        role = role & ~QUADRANT_MASK | (index & 1) << QUADRANT_SHIFT
    return role | (parent & LEVEL_MASK) - 1 | access << ACCESS_SHIFT | (DIRECT if direct else 0)


def gpte_gpa(role: int, gfn: int, index: int) -> int:
    """Return the gpa of the guest entry that entry ``index`` of the shadow page (``gfn``, ``role``) is made from.

    Two entries at level 2 are made from one 4-byte entry, which covers 4 MiB.
    """
    if not role & FOUR_BYTE:
        return gfn << PAGE_SHIFT | index << 3
    entry = ((role & QUADRANT_MASK) >> QUADRANT_SHIFT) << 9 | index
    return gfn << PAGE_SHIFT | (entry >> (1 if role & LEVEL_MASK == 2 else 0)) << 2


def spte_indices(role: int, offset: int) -> list[int]:
    """Return the entries of a shadow page that are made from the guest entry at ``offset`` in its table (C.6).

    None, if another quadrant shadows it.
    """
    if not role & FOUR_BYTE:
        return [offset >> 3]
    first = (offset >> 2) << (1 if role & LEVEL_MASK == 2 else 0)
    if first >> 9 != (role & QUADRANT_MASK) >> QUADRANT_SHIFT:
        return []
    return [first & INDEX, (first & INDEX) + 1] if role & LEVEL_MASK == 2 else [first & INDEX]


def may_sync(page: int, root: int) -> bool:
    """Whether a vCPU with this root role may sync the page (C.5, F-37)."""
    return not (page ^ root) & SYNC_MASK


def key_of(role: int) -> int:
    """Return the protection key of what a direct page maps."""
    return (role & KEY_MASK) >> KEY_SHIFT
