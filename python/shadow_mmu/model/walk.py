"""The guest page-table walk, one for every mode (B.2); comments give the step numbers of B.2."""

from typing import NamedTuple, Protocol

from .constants import (
    ACC_ALL,
    ACC_W,
    GPTE_A,
    GPTE_D,
    GPTE_P,
    GPTE_PS,
    INDEX,
    PAGE_SHIFT,
    PF_F,
    PF_P,
    PF_PK,
    PF_RSVD,
    PFN_MASK,
)
from .permissions import Access, Context, access_code, gpte_access, has_reserved_bits, is_denied, key_denies, key_of


class TableMemory(Protocol):
    """Where guest tables are walked: guest memory, or what the hardware's direct tables show of it."""

    def has(self, gfn: int, /) -> bool:
        """Whether the frame is there."""

    def word(self, gpa: int, /) -> int:
        """Read the 8 bytes of an entry in a frame that is there."""

    def load(self, gpa: int, size: int, /) -> int:
        """Read an entry of ``size`` bytes."""

    def store(self, gpa: int, value: int, size: int, /) -> None:
        """Write an entry of ``size`` bytes."""

    def may_mark(self, gpa: int, /) -> bool:
        """Whether A and D may be set in the entry at ``gpa``."""


class GuestWalk(NamedTuple):
    """A walk that reached its leaf."""

    level: int
    """Level of the leaf entry: 1, 2 or 3; 3 without paging, where no table is above the frame."""
    gfn: int
    """Target frame, the in-page frame of a large leaf added."""
    access: int
    """ACC bits of the leaf; W dropped if the access is no write and D is clear."""
    parent_access: dict[int, int]
    """By level: the rights accumulated over the entries above that level's table."""
    table_gfn: dict[int, int]
    """By level: the frame of the table."""
    gptes: dict[int, int]
    """By level: the raw entry; after :func:`walk` with A and D set, but in a read-only table."""
    key: int
    """Protection key of the page."""


def entry_gpa(context: Context, table_gfn: int, gva: int, level: int) -> int:
    """Return the gpa of the entry that maps ``gva`` in a table of this level (B.1)."""
    if context.four_byte:
        return table_gfn << PAGE_SHIFT | (gva >> (2 + 10 * level) & 1023) << 2
    return table_gfn << PAGE_SHIFT | (gva >> (3 + 9 * level) & INDEX) << 3


def read_entry(memory: TableMemory, context: Context, gpa: int) -> int:
    """Return the entry at ``gpa``, 4 or 8 bytes wide."""
    return memory.load(gpa, 4) if context.four_byte else memory.word(gpa)


def is_leaf(context: Context, gpte: int, level: int) -> bool:
    """Whether a present entry maps a page: always at level 1, where bit 7 is PAT; above by bit 7, if the mode has it."""
    return level == 1 or (level <= context.largest and bool(gpte & GPTE_PS))


def leaf_gfn(context: Context, gpte: int, gva: int, level: int) -> int:
    """Return the target frame of a leaf: its base masked to the level, plus the in-page frame of ``gva`` (step 7)."""
    frames = (1 << (10 if context.four_byte else 9) * (level - 1)) - 1
    base = (gpte & PFN_MASK) >> PAGE_SHIFT & ~frames
    if context.four_byte and level == 2:
        base |= (gpte >> 13 & 0xF) << 20  # PSE-36: PA[35:32]
    return base | gva >> PAGE_SHIFT & frames


def walk(memory: TableMemory, context: Context, first_table: int | None, gva: int, access: Access) -> GuestWalk | int:
    """Walk the guest's tables for one access; a page fault is returned as its error code.

    ``first_table`` is the frame of the table at ``context.top``; ``None`` if the PDPTR of ``gva`` is not present.

    A and D bits are written only after every check has passed (step 11): a walk that faults writes nothing, unless it is the
    restart of a walk whose compare-exchange failed.
    """
    if not context.top:
        return GuestWalk(3, gva >> PAGE_SHIFT, ACC_ALL, {}, {}, {}, 0)  # E103: no tables, no rights, no faults
    while True:
        result = _walk_once(memory, context, first_table, gva, access)
        if result is not None:
            return result


def _walk_once(
    memory: TableMemory, context: Context, first_table: int | None, gva: int, access: Access
) -> GuestWalk | int | None:
    """Walk once; ``None`` if an entry changed between its reading and the setting of its A or D bit."""
    found = descend(memory, context, first_table, gva, access)
    if isinstance(found, int):
        return found
    level, gptes = found.level, found.gptes
    # Step 9.
    acc = found.access if access.write or gptes[level] & GPTE_D else found.access & ~ACC_W
    # Step 10, from the top level down to the leaf.
    for at in range(context.top, level - 1, -1):
        want = gptes[at] | GPTE_A | (GPTE_D if access.write and at == level else 0)
        if want == gptes[at]:
            continue
        gpa = entry_gpa(context, found.table_gfn[at], gva, at)
        if not memory.may_mark(gpa):
            continue  # a table that the guest may not write stays as it is, and the walk goes on (E107)
        if not compare_exchange(memory, context, gpa, gptes[at], want):
            return None
        gptes[at] = want
    return found._replace(access=acc)


def descend(
    memory: TableMemory, context: Context, first_table: int | None, gva: int, access: Access
) -> GuestWalk | int:
    """Take steps 1 to 7, which write nothing: every entry as it is, and all rights that the entries give."""
    # Step 1. The failure code carries W and U, and F only where the processor defines it.
    code = access_code(access)
    if access.fetch and not (context.nx or context.smep):
        code &= ~PF_F
    if first_table is None:
        return code
    level = context.top
    gfn = first_table
    acc = ACC_ALL
    parent_access: dict[int, int] = {}
    table_gfn: dict[int, int] = {}
    gptes: dict[int, int] = {}
    while True:
        # Step 2. A table in no memslot is a not-present style fault.
        if not memory.has(gfn):
            return code
        gpte = read_entry(memory, context, entry_gpa(context, gfn, gva, level))
        table_gfn[level], gptes[level], parent_access[level] = gfn, gpte, acc
        # Step 4.
        if not gpte & GPTE_P:
            return code
        if has_reserved_bits(context, gpte, level):
            return code | PF_P | PF_RSVD
        acc &= gpte_access(gpte)  # step 3
        if is_leaf(context, gpte, level):  # step 5
            break
        gfn = (gpte & PFN_MASK) >> PAGE_SHIFT
        level -= 1
    key = key_of(context, gpte)
    if key_denies(context, acc, key, access):  # step 6
        return code | PF_P | PF_PK
    if is_denied(context, acc, access):
        return code | PF_P
    target = leaf_gfn(context, gpte, gva, level)  # step 7
    return GuestWalk(level, target, acc, parent_access, table_gfn, gptes, key)


def compare_exchange(memory: TableMemory, context: Context, gpa: int, old: int, new: int) -> bool:
    """Write an entry if it still holds what the walk read; false if it does not (E105).

    Nothing runs beside the model, and yet it can fail: a table that is its own child has one entry on the path twice.
    """
    if read_entry(memory, context, gpa) != old:
        return False
    memory.store(gpa, new, 4 if context.four_byte else 8)
    return True
