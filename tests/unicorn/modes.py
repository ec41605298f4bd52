"""The paging modes that are judged: what their tables look like, and the registers that select them."""

from dataclasses import dataclass
from typing import Final

MEMORY: Final = 4 << 20
"""Bytes of physical memory, from 0 on."""
HIGH: Final = tuple(1 << bit for bit in range(36, 40))
"""Where the judge has as much memory again: an address bit each that PSE-36 has beyond the 36 bits of KVM."""
PSE36: Final = 5 << 32
"""Where both have as much memory again: within reach of PSE-36."""
TABLES: Final = 24
"""Frames 1 to 24 are for the tables of a case; frame 1 is the root."""
ROOT: Final = 0x1000
DATA: Final = 0x40000
"""Data lies from here to the end of memory, and in all of the memory further up."""
MAXPHYADDR: Final = 40
_CR0, _PG = 0x33, 1 << 31
_PSE, _PAE, _LA57, _PKE = 1 << 4, 1 << 5, 1 << 12, 1 << 22
_SCE, _LMA_LME, _NXE = 1, 0x500, 0x800


@dataclass(frozen=True, slots=True)
class Paging:
    """One paging mode.

    Attributes
    ----------
    levels : int
        Levels of tables, PAE's page-directory pointers counted; 0 if paging is off.
    entry_bytes : int
        4 or 8.
    largest : int
        Highest level whose entries map pages if bit 7 is set.
    cr4 : int
        Bits of CR4 that select it.
    frames : dict
        The frames of the tables by level.

    """

    name: str
    levels: int
    entry_bytes: int
    largest: int
    cr4: int
    frames: dict[int, range]

    def __str__(self) -> str:
        """Return the name, for the ids of tests."""
        return self.name

    @property
    def long(self) -> bool:
        """Whether this is 4- or 5-level paging."""
        return self.levels >= 4

    @property
    def pae(self) -> bool:
        """Whether the root is four page-directory pointers, which are registers."""
        return self.levels == 3

    @property
    def index_bits(self) -> int:
        """How many bits of a linear address index one table."""
        return 9 if self.entry_bytes == 8 else 10

    @property
    def entries(self) -> int:
        """How many entries a table has."""
        return 4096 // self.entry_bytes

    @property
    def code_slot(self) -> int:
        """The entry of the root through which the judge's instructions are mapped; in the upper half where there is one."""
        return 3 if self.pae else 0x1F0 if self.entry_bytes == 8 else 0x3F0

    def shift(self, level: int) -> int:
        """Return the lowest bit of a linear address that indexes a table of this level."""
        return 12 + self.index_bits * (level - 1)

    def indices(self, level: int) -> tuple[int, ...]:
        """Return the entries that addresses use."""
        if self.pae and level == self.levels:
            return (0, 0, 1, 2)
        return (0, 0, 1, 1, 2, self.entries - 1)


def _frames(*counts: int) -> dict[int, range]:
    """Give so many frames to each level, from the root's level down."""
    frames, first = {}, 1
    for level, count in zip(range(len(counts), 0, -1), counts, strict=True):
        frames[level] = range(first, first + count)
        first += count
    assert first == TABLES + 1
    return frames


PAGINGS: Final = {
    one.name: one
    for one in (
        Paging("4-level", 4, 8, 3, _PAE, _frames(1, 4, 7, 12)),
        Paging("5-level", 5, 8, 3, _PAE | _LA57, _frames(1, 3, 4, 6, 10)),
        Paging("PAE", 3, 8, 2, _PAE, _frames(1, 9, 14)),
        Paging("32-bit", 2, 4, 2, _PSE, _frames(3, 21)),
        Paging("32-bit without PSE", 2, 4, 1, 0, _frames(3, 21)),
        Paging("off", 0, 8, 1, 0, {}),
    )
}


@dataclass(frozen=True, slots=True)
class Mode:
    """The registers of an access."""

    paging: Paging
    wp: bool = True
    nx: bool = True
    smep: bool = False
    smap: bool = False
    ac: bool = False
    pse: bool = False
    """Asked for where it decides nothing: under 32-bit paging the mode itself says it."""
    pkru: int | None = None
    """PKRU with CR4.PKE set; ``None`` with CR4.PKE clear."""

    @property
    def cr0(self) -> int:
        """CR0."""
        return _CR0 | self.wp << 16 | (_PG if self.paging.levels else 0)

    @property
    def cr4(self) -> int:
        """CR4."""
        pse = _PSE if self.pse and self.paging.entry_bytes == 8 else 0
        keys = 0 if self.pkru is None else _PKE
        return self.paging.cr4 | pse | self.smep << 20 | self.smap << 21 | keys

    @property
    def efer(self) -> int:
        """EFER."""
        return _SCE | (_LMA_LME if self.paging.long else 0) | self.nx * _NXE


def is_data(gpa: int) -> bool:
    """Whether what lies at an address tells where it is."""
    return DATA <= gpa < MEMORY or any(0 <= gpa - base < MEMORY for base in (PSE36, *HIGH))
