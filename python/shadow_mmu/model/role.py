"""The role word of a shadow page: what, beside its gfn, decides what it maps (C.1)."""

from typing import Final

from .constants import ACC_ALL
from .permissions import Context

LEVEL_MASK: Final = 0xF
DIRECT: Final = 1 << 7
ACCESS_SHIFT: Final = 8
ACCESS_MASK: Final = ACC_ALL << ACCESS_SHIFT
INVALID: Final = 1 << 11
EFER_NX: Final = 1 << 12
CR0_WP: Final = 1 << 13
SMEP_ANDNOT_WP: Final = 1 << 14
SMAP_ANDNOT_WP: Final = 1 << 15
SYNC_MASK: Final = ~(LEVEL_MASK | 0x60 | ACCESS_MASK | 1 << 18) & 0xFFFFFFFF
"""Bits in which a page must agree with the vCPU's root role to be synced: all but level, quadrant, access, passthrough."""


def root_role(context: Context) -> int:
    """Return the role of a root that a vCPU in this context would use (A.8)."""
    role = context.levels | ACCESS_MASK | EFER_NX
    if context.wp:
        return role | CR0_WP
    return role | (SMEP_ANDNOT_WP if context.smep else 0) | (SMAP_ANDNOT_WP if context.smap else 0)


def child_role(parent: int, access: int, *, direct: bool) -> int:
    """Return the role of a page one level down; ``invalid`` is never inherited (F-05)."""
    kept = parent & ~(LEVEL_MASK | DIRECT | ACCESS_MASK | INVALID)
    return kept | (parent & LEVEL_MASK) - 1 | access << ACCESS_SHIFT | (DIRECT if direct else 0)


def may_sync(page: int, root: int) -> bool:
    """Whether a vCPU with this root role may sync the page (C.5, F-37)."""
    return not (page ^ root) & SYNC_MASK
