"""The walk of one address, with what was seen at each level: the model's rules (B.2 to B.4) over a dump."""

from typing import Final

from shadow_mmu.model.constants import (
    ACC_ALL,
    GPTE_A,
    GPTE_D,
    GPTE_NX,
    GPTE_P,
    GPTE_PS,
    GPTE_U,
    GPTE_W,
    PAGE_OFFSET,
    PAGE_SHIFT,
    PAGE_SIZE,
    PFN_MASK,
    WORD,
)
from shadow_mmu.model.permissions import Context, gpte_access, has_reserved_bits
from shadow_mmu.model.walk import entry_gpa, is_leaf, leaf_gfn
from shadow_mmu.pagewalk import EntryKind, PageWalk, Rights, WalkDimension, WalkStep

from .physical import PhysicalMemory

__all__ = ["explain", "guest_flags"]

_PWT, _PCD, _GLOBAL, _LARGE_PAT = 1 << 3, 1 << 4, 1 << 8, 1 << 12
_ANY: Final = ((GPTE_P, "P"), (GPTE_W, "W"), (GPTE_U, "U"), (_PWT, "PWT"), (_PCD, "PCD"), (GPTE_A, "A"))
_PKEY_SHIFT, _PKEY_MASK = 59, 15


def guest_flags(entry: int, level: int, *, leaf: bool) -> tuple[str, ...]:
    """Return the names of the flags of a guest entry, lowest bit first (SDM 3A tables 4-15 to 4-20).

    >>> guest_flags(0x80000000000001E3, 2, leaf=True)
    ('P', 'W', 'A', 'D', 'PS', 'G', 'NX')
    """
    named = [name for bit, name in _ANY if entry & bit]
    if leaf:
        named += [
            name
            for bit, name in ((GPTE_D, "D"), (GPTE_PS, "PAT" if level == 1 else "PS"), (_GLOBAL, "G"))
            if entry & bit
        ]
        if level > 1 and entry & _LARGE_PAT:
            named.append("PAT")
        if key := entry >> _PKEY_SHIFT & _PKEY_MASK:
            named.append(f"PK={key}")
    elif entry & GPTE_PS:
        named.append("PS")
    return (*named, *(("NX",) if entry & GPTE_NX else ()))


def explain(memory: PhysicalMemory, context: Context, root: int, gva: int) -> PageWalk:
    """Walk the tables under ``root`` for ``gva`` and keep what was seen.

    Raises
    ------
    DumpError
        The file cannot be read.

    """
    steps: list[WalkStep] = []
    address = None
    shift = context.address_bits - 1
    if gva >> shift in (0, WORD >> shift):
        address = _walk(memory, context, root, gva, steps)
    return PageWalk(gva, WalkDimension("guest", root, context.top, tuple(steps), address))


def _walk(memory: PhysicalMemory, context: Context, root: int, gva: int, steps: list[WalkStep]) -> int | None:
    access, table = ACC_ALL, root
    for level in range(context.top, 0, -1):
        at = entry_gpa(context, table >> PAGE_SHIFT, gva, level)
        index = (at & PAGE_OFFSET) >> 3
        if not memory.holds(table, PAGE_SIZE):
            rights = Rights.of_access(access)
            steps.append(WalkStep(level, table, index, 0, EntryKind.ABSENT, (), rights, None))
            return None
        entry = int.from_bytes(memory.read(at, 8), "little")
        leaf = is_leaf(context, entry, level)
        target: int | None = None
        if not entry & GPTE_P:
            kind = EntryKind.NOT_PRESENT
        elif has_reserved_bits(context, entry, level):
            kind = EntryKind.RESERVED
        else:
            access &= gpte_access(entry)
            kind = EntryKind.PAGE if leaf else EntryKind.TABLE
            target = leaf_gfn(context, entry, 0, level) << PAGE_SHIFT if leaf else entry & PFN_MASK
        flags = guest_flags(entry, level, leaf=leaf) if entry & GPTE_P else ()
        steps.append(WalkStep(level, table, index, entry, kind, flags, Rights.of_access(access), target))
        if kind is EntryKind.PAGE:
            return leaf_gfn(context, entry, gva, level) << PAGE_SHIFT | gva & PAGE_OFFSET
        if target is None:
            return None
        table = target
    return None
