"""A small, crowded guest for random testing: few tables, few frames, everything aliased.

Memory is 2 MiB at gpa 0 and 64 KiB at 1 GiB, with nothing between; in some machines a few frames of it are read-only. A pool of frames holds the guest's tables, each with a
level that most entries respect; some do not (a table used at two levels, a table that maps itself). A *window* maps the first
2 MiB one to one in every address space, so that guest stores can reach any table through the guest's own mapping.
"""

from dataclasses import dataclass
from random import Random
from typing import Final

from shadow_mmu.cpu import DEFAULT_CPU, CpuModel
from shadow_mmu.ops import Op
from shadow_mmu.types import PAGE_SIZE, OpKind

LOW_BYTES: Final = 2 << 20
HIGH_SLOT: Final = 1 << 30
HIGH_BYTES: Final = 64 << 10
OUTSIDE: Final = 0x3000_0000
SLOTS: Final = ((0, LOW_BYTES, False), (HIGH_SLOT, HIGH_BYTES, False))

P, W, U, PWT, PCD, A, D, PS, G = (1 << bit for bit in range(9))
NX: Final = 1 << 63
KEY_SHIFT: Final = 59
_FIRST_TABLE_GFN: Final = 0x10
_FIRST_DATA_GFN: Final = 0x80
DATA_GFNS: Final = tuple(range(_FIRST_DATA_GFN, _FIRST_DATA_GFN + 12))
ROOTS: Final = 4
_TABLES_PER_LEVEL: Final = 3
_LEAF_TABLES: Final = 5
WINDOW_INDEX: Final = 3
# How many streams have read-only memslots.
_READ_ONLY: Final = 0.35
_CHANCES: Final = (
    (P, 0.985),
    (W, 0.95),
    (U, 0.92),
    (A, 0.6),
    (D, 0.5),
    (PWT, 0.03),
    (PCD, 0.03),
    (G, 0.05),
    (NX, 0.03),
)


@dataclass(frozen=True, slots=True)
class Paging:
    """A paging mode as the guest's tables show it, and the registers that select it."""

    name: str
    levels: int
    index_bits: int
    entry_bytes: int
    address_bits: int
    top: tuple[int, ...]
    """The entries of a root that addresses use."""
    below: tuple[int, ...]
    """The entries of other tables that addresses use."""
    cr4: int
    efer: int

    @property
    def has_pdptrs(self) -> bool:
        """Whether the root is four entries that are loaded by CR3 writes."""
        return self.name == "PAE"


_LONG: Final = (0, 1, 255, 256, 511)
_BELOW: Final = (0, 1, 2, 511)
PAGINGS: Final = {
    one.name: one
    for one in (
        Paging("4-level", 4, 9, 8, 48, _LONG, _BELOW, 0x20, 0xD00),
        Paging("5-level", 5, 9, 8, 57, _LONG, _BELOW, 0x1020, 0xD00),
        Paging("PAE", 3, 9, 8, 32, (0, 1, 2), _BELOW, 0x30, 0x800),
        Paging("32-bit", 2, 10, 4, 32, (0, 1, 511, 512, 1023), (0, 1, 2, 1023), 0x10, 0x800),
    )
}


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """How both machines of a comparison are made."""

    policy: str
    vcpus: int = 2
    tlb_entries: int = 24
    cpu: CpuModel = DEFAULT_CPU
    slots: tuple[tuple[int, int, bool], ...] = SLOTS


def random_processor(rng: Random) -> CpuModel:
    """Draw a processor: mostly one that has everything, sometimes one that lacks this or that."""
    lack = 0.15 if rng.random() < 0.3 else 0.0
    features = {name: rng.random() >= lack for name in ("gib_pages", "pse36", "nx", "wp", "smep", "smap", "la57")}
    features["pku"] = rng.random() < 0.3
    return CpuModel(maxphyaddr=rng.choice((46, 46, 40, 52)), **features)


def random_slots(rng: Random) -> tuple[tuple[int, int, bool], ...]:
    """Draw the memslots: sometimes a few frames, of tables or of data, are read-only, and sometimes the high slot is (E107)."""
    if rng.random() >= _READ_ONLY:
        return SLOTS
    first = rng.randrange(_FIRST_TABLE_GFN, _FIRST_DATA_GFN + len(DATA_GFNS))
    start, end = first << 12, (first + rng.choice((1, 1, 2, 4))) << 12
    low = ((0, start, False), (start, end - start, True), (end, LOW_BYTES - end, False))
    return (*low, (HIGH_SLOT, HIGH_BYTES, rng.random() < 0.5))


class World:
    """Where the tables are, and how to draw an address, an entry, a page of entries.

    Parameters
    ----------
    paging : str
        ``4-level``, ``5-level``, ``PAE`` or ``32-bit``.
    cpu : CpuModel
        Which bits are reserved.

    """

    __slots__ = ("cpu", "level_of", "levels", "paging", "tables", "window")

    def __init__(self, paging: str = "4-level", cpu: CpuModel = DEFAULT_CPU) -> None:
        self.paging, self.cpu = PAGINGS[paging], cpu
        self.levels = levels = self.paging.levels
        self.tables: dict[int, list[int]] = {}
        gfn = _FIRST_TABLE_GFN
        for level in range(levels, 0, -1):
            count = {levels: ROOTS, 1: _LEAF_TABLES}.get(level, _TABLES_PER_LEVEL)
            self.tables[level] = list(range(gfn, gfn + count))
            gfn += count
        # The window's own chain of tables, below the top.
        self.window = {level: gfn + levels - 1 - level for level in range(levels - 1, 0, -1)}
        self.level_of = {one: level for level, gfns in self.tables.items() for one in gfns}
        self.level_of |= {one: level for level, one in self.window.items()}

    @property
    def table_gfns(self) -> list[int]:
        """Every frame that holds a table."""
        return list(self.level_of)

    def _shift(self, level: int) -> int:
        return 12 + self.paging.index_bits * (level - 1)

    def canonical(self, gva: int) -> int:
        """Return ``gva`` with its upper bits made copies of its top one; of 32-bit addresses there are none."""
        bits = self.paging.address_bits
        gva &= (1 << bits) - 1
        if bits == 32:
            return gva
        return gva | (((1 << 64) - (1 << bits)) if gva >> (bits - 1) else 0)

    def gva(self, rng: Random) -> int:
        """Draw one of a few hundred page addresses."""
        gva = rng.choice(self.paging.top) << self._shift(self.levels)
        for level in range(self.levels - 1, 0, -1):
            gva |= rng.choice(self.paging.below) << self._shift(level)
        return self.canonical(gva)

    def place(self, rng: Random, gfn: int) -> int:
        """Draw the gpa of one of the entries of a table that addresses use."""
        return gfn << 12 | self.paging.entry_bytes * rng.choice(self.paging.below)

    def word(self, rng: Random, level: int) -> int:
        """Draw an aligned word of a table: one entry of 8 bytes, or two of 4."""
        if self.paging.entry_bytes == 8:
            return self.entry(rng, level)
        return self.entry(rng, level) | self.entry(rng, level) << 32

    def through_window(self, gpa: int) -> int:
        """Return the gva at which the window shows a gpa of the low slot."""
        gva = WINDOW_INDEX << self._shift(self.levels)
        return self.canonical(gva | gpa)

    def entry(self, rng: Random, level: int) -> int:
        """Draw a table entry for ``level``: mostly one that leads somewhere."""
        if rng.random() < 0.04:
            return 0
        if self.paging.has_pdptrs and level == self.levels:
            # A reserved bit in one of these makes the CR3 write fault; there are no rights in them.
            bad = 1 << rng.choice((1, 2, 5, 63)) if rng.random() < 0.005 else 0
            return rng.choice(self.tables[level - 1]) << 12 | P | bad
        bits = 0
        for bit, chance in _CHANCES:
            bits |= bit * (rng.random() < chance)
        if rng.random() < 0.01:
            bits |= 1 << rng.choice((self.cpu.maxphyaddr, 51, 7))
        if self.cpu.pku and self.paging.entry_bytes == 8 and not self.paging.has_pdptrs:
            bits |= rng.choice((0, 0, 1, 2, 15)) << KEY_SHIFT
        return (self._target(rng, level) | bits) & ((1 << 8 * self.paging.entry_bytes) - 1)

    def _target(self, rng: Random, level: int) -> int:
        """Draw where an entry leads: frame bits, and PS for a large page."""
        chance = rng.random()
        if level in (2, 3) and chance < 0.12:
            # 2 or 4 MiB: the tables themselves or the high slot; 1 GiB: all of memory or the high slot and what follows.
            frame = rng.choice((0, HIGH_SLOT, OUTSIDE & ~((1 << self._shift(level)) - 1)))
            return frame | PS | (rng.choice((1 << 12, 1 << 13, 1 << 17)) if rng.random() < 0.05 else 0)
        if level > 1:
            if chance < 0.95:
                return rng.choice(self.tables[level - 1]) << 12
            return rng.choice((*self.table_gfns, DATA_GFNS[0], OUTSIDE >> 12)) << 12
        if chance < 0.6:
            return rng.choice(DATA_GFNS) << 12
        if chance < 0.9:
            return rng.choice(self.table_gfns) << 12
        return HIGH_SLOT + PAGE_SIZE * rng.randrange(HIGH_BYTES >> 12) if chance < 0.97 else OUTSIDE

    def page(self, rng: Random, level: int) -> list[int]:
        """Draw the 512 entries of a table: those at the indices that addresses use are drawn, the others empty."""
        entries = [0] * (PAGE_SIZE // self.paging.entry_bytes)
        for index in self.paging.top if level == self.levels else self.paging.below:
            entries[index] = self.entry(rng, level)
        if level == self.levels:
            entries[WINDOW_INDEX] = self.window_root()
        return self._packed(entries)

    def window_root(self) -> int:
        """Return the entry of a root that leads to the window."""
        return self.window[self.levels - 1] << 12 | (P if self.paging.has_pdptrs else P | W | U | A)

    def _packed(self, entries: list[int]) -> list[int]:
        """Return the 512 words of a table."""
        if self.paging.entry_bytes == 8:
            return entries
        return [low | high << 32 for low, high in zip(entries[::2], entries[1::2], strict=True)]

    def window_page(self, level: int) -> list[int]:
        """Return the 512 entries of a table of the window."""
        count = PAGE_SIZE // self.paging.entry_bytes
        if level == 1:
            return self._packed([gfn << 12 | P | W | U | A | D for gfn in range(count)])
        return self._packed([self.window[level - 1] << 12 | P | W | U | A, *[0] * (count - 1)])

    def setup(self, rng: Random) -> tuple[list[Op], list[list[int]]]:
        """Return the operations that fill every table, and the pages that they refer to."""
        operations: list[Op] = []
        pages: list[list[int]] = []
        windows = set(self.window.values())
        for gfn, level in self.level_of.items():
            operations.append(Op(OpKind.HOST_PAGE, aux=len(pages), addr=gfn << 12))
            pages.append(self.window_page(level) if gfn in windows else self.page(rng, level))
        return operations, pages
