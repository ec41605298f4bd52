"""The guest's own tables walked for one address, with what was seen at each level: the model's rules (B.1 to B.4) over any memory.

The geometry is the model's too: what differs between the modes is in the :class:`~shadow_mmu.model.permissions.Context`.
"""

from typing import Final, Protocol

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
from shadow_mmu.model.registers import PagingMode
from shadow_mmu.model.walk import entry_gpa, is_leaf, leaf_gfn

from .types import EntryKind, Rights, WalkDimension, WalkStep

__all__ = ["MODE_NAMES", "TableMemory", "guest_dimension", "guest_flags"]

MODE_NAMES: Final = {
    PagingMode.BITS32: "32-bit",
    PagingMode.LONG4: "4-level",
    PagingMode.LONG5: "5-level",
}
_PWT, _PCD, _GLOBAL, _LARGE_PAT = 1 << 3, 1 << 4, 1 << 8, 1 << 12
_ANY: Final = ((GPTE_P, "P"), (GPTE_W, "W"), (GPTE_U, "U"), (_PWT, "PWT"), (_PCD, "PCD"), (GPTE_A, "A"))
_PKEY_SHIFT, _PKEY_MASK = 59, 15


class TableMemory(Protocol):
    """Where tables are read from."""

    def holds(self, gpa: int, length: int, /) -> bool:
        """Whether every byte of a range is there."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Return bytes that are there."""


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


def guest_dimension(memory: TableMemory, context: Context, cr3: int, gva: int) -> WalkDimension:
    """Walk the tables that ``cr3`` names for ``gva`` and keep what was seen."""
    steps: list[WalkStep] = []
    address = size = None
    shift = context.address_bits - 1
    if gva >> shift in (0, WORD >> shift):
        frame = _descend(memory, context, cr3 & PFN_MASK, gva, steps)
        if frame is not None:
            address = frame << PAGE_SHIFT | gva & PAGE_OFFSET
            size = 1 << PAGE_SHIFT + (10 if context.four_byte else 9) * (steps[-1].level - 1)
    return WalkDimension(
        name="guest",
        mode=MODE_NAMES[context.mode],
        root=cr3 & PFN_MASK,
        levels=context.mode.value,
        steps=tuple(steps),
        end=steps[-1].kind if steps else EntryKind.NON_CANONICAL,
        address=address,
        page_size=size,
    )


def _descend(memory: TableMemory, context: Context, table: int, gva: int, steps: list[WalkStep]) -> int | None:
    """Walk from the table at ``context.top`` down; the frame that is reached, if one is."""
    access, width = ACC_ALL, 4 if context.four_byte else 8
    for level in range(context.top, 0, -1):
        at = entry_gpa(context, table >> PAGE_SHIFT, gva, level)
        index = (at & PAGE_OFFSET) // width
        if not memory.holds(table, PAGE_SIZE):
            rights = Rights.of_access(access)
            steps.append(WalkStep(level, table, index, width, 0, EntryKind.ABSENT, (), rights, None))
            return None
        entry = int.from_bytes(memory.read(at, width), "little")
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
        steps.append(WalkStep(level, table, index, width, entry, kind, flags, Rights.of_access(access), target))
        if kind is EntryKind.PAGE:
            return leaf_gfn(context, entry, gva, level)
        if target is None:
            return None
        table = target
    return None
