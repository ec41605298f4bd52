"""Every page that a set of tables maps: the walk of B.2 over whole tables at once, level by level.

What an entry means is the model's rule (``shadow_mmu.model``: reserved bits B.4, rights C.1, leaf test F-30), here over arrays
of 512 entries a table. Tables may lead back to themselves (Windows maps its own so): nothing is wrong with that, but 512
entries that do give 2^36 pages. So pages and tables are counted, and the depth-first order keeps what waits small.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shadow_mmu.errors import ConfigError, DumpError
from shadow_mmu.frozen import digest, same
from shadow_mmu.model.constants import (
    ACC_ALL,
    ACC_U,
    ACC_W,
    ACC_X,
    GPTE_NX,
    GPTE_P,
    GPTE_PS,
    GPTE_U,
    GPTE_W,
    PAGE_SHIFT,
    PFN_MASK,
)
from shadow_mmu.model.permissions import Context

from .physical import PhysicalMemory

if TYPE_CHECKING:
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]
    Flags = npt.NDArray[np.bool_]

__all__ = ["DEFAULT_LIMIT", "LEAF", "Leaves", "Trouble", "find_leaves"]

LEAF: Final = np.dtype([("gva", "<u8"), ("gpa", "<u8"), ("entry", "<u8"), ("access", "u1"), ("level", "u1")])
"""One mapped page: its addresses, its raw entry, the ACC bits accumulated over all levels (C.1), the level of the entry."""
DEFAULT_LIMIT: Final = 1 << 22
"""Pages, of 26 bytes each: 16 GiB mapped in pages of 4 KiB."""
_TABLES_SHARE: Final = 64
"""At most one table is read for so many pages of the limit; a table of 4 KiB pages has up to 512."""
_LEAST_TABLES: Final = 4096
_BATCH: Final = 256
"""Tables that are looked at together: 1 MiB of entries, and some 6 MiB for what is computed of them."""
_KEPT: Final = 16
"""Places kept of each kind of trouble."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Entries that map nothing though they are present.

    Attributes
    ----------
    count : int
    first : tuple of (gva, level, value)
        The first of them, at most 16, in no particular order: the lowest address that the entry is for, its level, and the
        gpa of the table that is not in the dump, or the entry that has a reserved bit set.

    """

    count: int
    first: tuple[tuple[int, int, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        rows = [{"gva": f"{gva:#x}", "level": level, "value": f"{value:#x}"} for gva, level, value in self.first]
        return {"count": self.count, "first": rows}


@dataclass(frozen=True, slots=True, eq=False)
class Leaves:
    """The pages that a set of tables maps.

    Attributes
    ----------
    rows : numpy.ndarray
        dtype :data:`LEAF`, lowest gva first.
    tables : int
        Tables that were read, one that is reached twice twice.
    absent : Trouble
        Tables that are not in the dump.
    reserved : Trouble
        Present entries with a reserved bit set: an access faults.

    """

    rows: "npt.NDArray[Any]"
    tables: int
    absent: Trouble
    reserved: Trouble

    __eq__ = same
    __hash__ = digest

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def by_level(self) -> dict[int, int]:
        """How many pages there are of each level: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB."""
        counts = np.bincount(self.rows["level"], minlength=4).tolist()
        return {level: counts[level] for level in (1, 2, 3)}


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Tables of one level that wait to be read: frame, lowest gva, accumulated rights of each."""

    level: int
    frame: "Words"
    gva: "Words"
    access: "npt.NDArray[np.uint8]"

    def split(self) -> "tuple[_Tables, _Tables | None]":
        """Return the first ones, as many as are looked at together, and the rest."""
        parts = [
            _Tables(self.level, self.frame[part], self.gva[part], self.access[part])
            for part in (slice(None, _BATCH), slice(_BATCH, None))
        ]
        return parts[0], parts[1] if len(parts[1].frame) else None


class _Troubles:
    """Collects trouble of one kind."""

    __slots__ = ("count", "first")

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[int, int, int]] = []

    def add(self, gva: "Words", level: int, value: "Words") -> None:
        """Note entries; ``gva`` is canonical."""
        self.count += len(gva)
        room = _KEPT - len(self.first)
        rows = zip(gva[:room].tolist(), value[:room].tolist(), strict=True)
        self.first += [(at, level, what) for at, what in rows]

    def result(self) -> Trouble:
        """Return what was collected."""
        return Trouble(self.count, tuple(self.first))


class _Reader:
    """Reads tables of one level at a time, and keeps what is wrong with them."""

    __slots__ = ("absent", "context", "memory", "reserved")

    def __init__(self, memory: PhysicalMemory, context: Context) -> None:
        self.memory = memory
        self.context = context
        self.absent, self.reserved = _Troubles(), _Troubles()

    def read(self, batch: _Tables) -> "tuple[npt.NDArray[Any], _Tables | None]":
        """Return the pages that tables map, and the tables below them."""
        level = batch.level
        words, there = self.memory.tables(batch.frame)
        if not there.all():
            gone = ~there
            self.absent.add(self.canonical(batch.gva[gone]), level, batch.frame[gone] << np.uint64(PAGE_SHIFT))
        low, high = (np.uint64(mask) for mask in self.context.reserved[level])
        large = words & np.uint64(GPTE_PS) != 0
        present = words & np.uint64(GPTE_P) != 0
        bad = present & (words & np.where(large, high, low) != 0)
        if bad.any():
            gva, entry, _ = _entries(batch, words, bad)
            self.reserved.add(self.canonical(gva), level, entry)
        good = present & ~bad
        # F-30: level 1 always ends the walk; bit 7 does at levels 2 and 3, and is reserved above.
        gva, entry, access = _entries(batch, words, good if level == 1 else good & large)
        leaves = np.empty(len(gva), LEAF)
        leaves["gva"], leaves["entry"], leaves["access"], leaves["level"] = self.canonical(gva), entry, access, level
        leaves["gpa"] = entry & np.uint64(PFN_MASK & ~((1 << PAGE_SHIFT + 9 * (level - 1)) - 1))
        if level == 1:
            return leaves, None
        gva, entry, access = _entries(batch, words, good & ~large)
        if not len(gva):
            return leaves, None
        return leaves, _Tables(level - 1, (entry & np.uint64(PFN_MASK)) >> np.uint64(PAGE_SHIFT), gva, access)

    def canonical(self, gva: "Words") -> "Words":
        """Copy the highest bit of addresses into those above it."""
        sign = np.uint64(1 << PAGE_SHIFT + 9 * self.context.top - 1)
        return (gva ^ sign) - sign


def find_leaves(memory: PhysicalMemory, context: Context, root: int, *, limit: int = DEFAULT_LIMIT) -> Leaves:
    """Find every page that the tables under ``root`` map.

    Memory: 60 bytes a page found, and 16 MiB at most for what waits and is computed.

    Parameters
    ----------
    memory : PhysicalMemory
    context : Context
    root : int
        Physical address of the top table.
    limit : int
        Most pages; of tables at most ``limit / 64`` are read, but always 4096.

    Raises
    ------
    DumpError
        There are more; tables that lead back to themselves can do that.
    ConfigError
        ``limit`` is not positive.

    """
    if limit <= 0:
        raise ConfigError(f"limit {limit!r}: expected a positive number of pages")
    most_tables = max(limit // _TABLES_SHARE, _LEAST_TABLES)
    reader = _Reader(memory, context)
    found: list[npt.NDArray[Any]] = []
    pages = tables = 0
    frame, gva = np.array([root >> PAGE_SHIFT], np.uint64), np.zeros(1, np.uint64)
    waiting = [_Tables(context.top, frame, gva, np.array([ACC_ALL], np.uint8))]
    while waiting:
        batch, rest = waiting.pop().split()
        if rest is not None:
            waiting.append(rest)
        tables += len(batch.frame)
        if tables > most_tables:
            raise _too_many(memory, "tables to read", most_tables)
        leaves, below = reader.read(batch)
        pages += len(leaves)
        if pages > limit:
            raise _too_many(memory, "pages mapped", limit)
        if len(leaves):
            found.append(leaves)
        if below is not None:
            waiting.append(below)
    rows = np.concatenate(found) if found else np.empty(0, LEAF)
    found.clear()
    order = np.argsort(rows["gva"], kind="stable")
    return Leaves(rows[order], tables, reader.absent.result(), reader.reserved.result())


def _entries(batch: _Tables, words: "Words", chosen: "Flags") -> "tuple[Words, Words, npt.NDArray[np.uint8]]":
    """Return the lowest gva, the entry and the accumulated rights of the entries that are chosen."""
    rows, columns = np.nonzero(chosen)
    entry = words[rows, columns]
    shift = np.uint64(PAGE_SHIFT + 9 * (batch.level - 1))
    gva = batch.gva[rows] | columns.astype(np.uint64) << shift
    access = np.where(entry & np.uint64(GPTE_W), np.uint8(ACC_W), np.uint8(0))
    access |= np.where(entry & np.uint64(GPTE_U), np.uint8(ACC_U), np.uint8(0))
    access |= np.where(entry & np.uint64(GPTE_NX), np.uint8(0), np.uint8(ACC_X))
    return gva, entry, access & batch.access[rows]


def _too_many(memory: PhysicalMemory, what: str, limit: int) -> DumpError:
    return memory.error(
        f"too many {what}: the tables may lead back to themselves, or the limit is too low for this guest",
        found=f"more than {limit:,}",
        expected=f"at most {limit:,}",
    )
