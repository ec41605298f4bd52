"""The guest's own tables walked for one address, with what was seen at each level: the model's rules (B.1 to B.4) over any memory.

The geometry is the model's too: what differs between the modes is in the :class:`~shadow_mmu.model.permissions.Context`.
"""

from collections.abc import Sequence
from typing import Any, Final, Protocol

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

from .types import LEVEL_NAMES, EntryKind, Rights, WalkDimension, WalkStep

__all__ = ["MODE_NAMES", "PDPTR", "TableMemory", "guest_dimension", "guest_flags"]

MODE_NAMES: Final = {
    PagingMode.NONE: "paging off",
    PagingMode.BITS32: "32-bit",
    PagingMode.PAE: "PAE",
    PagingMode.LONG4: "4-level",
    PagingMode.LONG5: "5-level",
}
_PWT, _PCD, _GLOBAL, _LARGE_PAT = 1 << 3, 1 << 4, 1 << 8, 1 << 12
_ANY: Final = ((GPTE_P, "P"), (GPTE_W, "W"), (GPTE_U, "U"), (_PWT, "PWT"), (_PCD, "PCD"), (GPTE_A, "A"))
_PKEY_SHIFT, _PKEY_MASK = 59, 15
PDPTR: Final = "PDPTR"
"""Name of the first step of PAE paging: a register, which gives no rights."""
_PDPT_BYTES: Final = 32
_PDPTR_RESERVED: Final = 1 << 63 | 0x1E6
"""Bits 63, 8:5 and 2:1 of a PDPTR (B.3); those above MAXPHYADDR are reserved in every entry."""


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


def guest_dimension(
    memory: TableMemory, context: Context, cr3: int, gva: int, pdptrs: Sequence[int] | None = None
) -> WalkDimension:
    """Walk the tables that ``cr3`` names for ``gva`` and keep what was seen.

    Parameters
    ----------
    memory : TableMemory
    context : Context
        The mode and its rules.
    cr3 : int
    gva : int
        Outside long mode its low 32 bits count, as an instruction forms it.
    pdptrs : sequence of 4 int, optional
        The registers of PAE paging as they were loaded (E101); without them they are taken from memory.

    """
    if not context.long:
        gva &= 0xFFFFFFFF
    walk = _Walk(memory, context, gva)
    shift = context.address_bits - 1
    root = None
    if not context.top:
        walk.end, walk.frame = EntryKind.PAGE, gva >> PAGE_SHIFT
    else:
        root = cr3 & (PFN_MASK if context.mode is not PagingMode.PAE else 0xFFFFFFE0)
        if not context.long or gva >> shift in (0, WORD >> shift):
            table = walk.pdptr(root, pdptrs) if context.mode is PagingMode.PAE else root
            walk.descend(table)
    return WalkDimension(
        name="guest",
        mode=MODE_NAMES[context.mode],
        start=gva,
        root=root,
        levels=context.mode.value,
        steps=tuple(walk.steps),
        end=walk.end,
        address=None if walk.frame is None else walk.frame << PAGE_SHIFT | gva & PAGE_OFFSET,
        page_size=walk.page_size,
        rights=None if walk.frame is None else Rights.of_access(walk.access),
    )


class _Walk:
    """A walk that is being made."""

    def __init__(self, memory: TableMemory, context: Context, gva: int) -> None:
        self.memory, self.context, self.gva = memory, context, gva
        self.width = 4 if context.four_byte else 8
        self.access = ACC_ALL
        self.steps: list[WalkStep] = []
        self.end = EntryKind.NON_CANONICAL
        self.frame: int | None = None
        self.page_size: int | None = None

    def _step(self, level: int, table: int, index: int, entry: int, **found: Any) -> None:  # noqa: ANN401  the step's own fields
        named = {"name": LEVEL_NAMES[level], "flags": (), "target": None} | found
        rights = Rights.of_access(self.access)
        self.steps.append(
            WalkStep(level, table=table, index=index, entry_bytes=self.width, entry=entry, rights=rights, **named)
        )
        self.end = self.steps[-1].kind

    def pdptr(self, table: int, cached: Sequence[int] | None) -> int | None:
        """Take the first step of PAE paging; the address of the directory, if there is one."""
        index = self.gva >> 30
        there = self.memory.holds(table, _PDPT_BYTES)
        now = int.from_bytes(self.memory.read(table + 8 * index, 8), "little") if there else None
        entry = now if cached is None else cached[index]
        if entry is None:
            self._step(3, table, index, 0, kind=EntryKind.ABSENT, name=PDPTR)
            return None
        notes: tuple[str, ...] = ()
        if now is None:
            notes = ("loaded from memory that is in no memslot now",)
        elif now != entry:
            notes = (f"as it was loaded: memory holds {now:#x} now, which counts when CR3 is written",)
        reserved = _PDPTR_RESERVED | self.context.reserved[2][0]
        kind = EntryKind.TABLE if entry & GPTE_P else EntryKind.NOT_PRESENT
        if entry & GPTE_P and entry & reserved:
            kind = EntryKind.RESERVED
        target = entry & PFN_MASK if kind is EntryKind.TABLE else None
        flags = tuple(name for bit, name in ((GPTE_P, "P"), (_PWT, "PWT"), (_PCD, "PCD")) if entry & bit)
        self._step(
            3,
            table,
            index,
            entry,
            kind=kind,
            name=PDPTR,
            flags=flags if entry & GPTE_P else (),
            target=target,
            notes=notes,
        )
        return target

    def descend(self, table: int | None) -> None:
        """Walk from the table at ``context.top`` down."""
        context, gva = self.context, self.gva
        level = context.top
        while table is not None:
            at = entry_gpa(context, table >> PAGE_SHIFT, gva, level)
            index = (at & PAGE_OFFSET) // self.width
            if not self.memory.holds(table, PAGE_SIZE):
                self._step(level, table, index, 0, kind=EntryKind.ABSENT)
                return
            entry = int.from_bytes(self.memory.read(at, self.width), "little")
            leaf = is_leaf(context, entry, level)
            kind, target = EntryKind.PAGE if leaf else EntryKind.TABLE, None
            if not entry & GPTE_P:
                kind = EntryKind.NOT_PRESENT
            elif has_reserved_bits(context, entry, level):
                kind = EntryKind.RESERVED
            else:
                self.access &= gpte_access(entry)
                target = leaf_gfn(context, entry, 0, level) << PAGE_SHIFT if leaf else entry & PFN_MASK
            flags = guest_flags(entry, level, leaf=leaf) if entry & GPTE_P else ()
            self._step(level, table, index, entry, kind=kind, flags=flags, target=target)
            if kind is EntryKind.PAGE:
                self.frame = leaf_gfn(context, entry, gva, level)
                self.page_size = 1 << PAGE_SHIFT + (10 if context.four_byte else 9) * (level - 1)
                return
            table, level = target, level - 1
