"""What a walk is made of: its dimensions, their steps, rights. The makers of a dimension decode entries; nothing here knows a bit."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shadow_mmu.model.constants import ACC_U, ACC_W, ACC_X

__all__ = ["EntryKind", "PageWalk", "Rights", "WalkDimension", "WalkStep", "size_name"]

_LEVEL_NAMES: Final = {1: "PT", 2: "PD", 3: "PDPT", 4: "PML4", 5: "PML5"}


class EntryKind(StrEnum):
    """What an entry turned out to be; the last one of a walk says how the walk ended."""

    TABLE = "table"
    PAGE = "page"
    NOT_PRESENT = "not present"
    RESERVED = "reserved bit set"
    ABSENT = "table not in memory"
    NON_CANONICAL = "non-canonical address"


@dataclass(frozen=True, slots=True)
class Rights:
    """What the entries of a walk allow together; reading is always allowed where something is mapped.

    >>> str(Rights(writable=True, executable=False, user=False))
    'rw- s'
    """

    writable: bool
    executable: bool
    user: bool

    @classmethod
    def of_access(cls, access: int) -> "Rights":
        """Return the rights of ACC bits (C.1: X 1, W 2, U 4)."""
        return cls(writable=bool(access & ACC_W), executable=bool(access & ACC_X), user=bool(access & ACC_U))

    def __str__(self) -> str:
        return f"r{'w' if self.writable else '-'}{'x' if self.executable else '-'} {'u' if self.user else 's'}"


def size_name(size: int) -> str:
    """Return a size in the largest unit that divides it.

    >>> size_name(4096), size_name(2 << 20), size_name(3 << 30)
    ('4 KiB', '2 MiB', '3 GiB')
    """
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift:,} {unit}"
    return f"{size:,} B"


@dataclass(frozen=True, slots=True)
class WalkStep:
    """One level of a walk.

    Attributes
    ----------
    level : int
        1 (4 KiB pages) to 5; 3 for a PDPTR of PAE paging.
    table : int
        Physical address of the table.
    index : int
        Which of its entries: 0 to 511, of 4-byte entries to 1,023, of PDPTRs to 3.
    entry_bytes : int
        Width of an entry: 8, or 4 under 32-bit paging.
    entry : int
        The entry; 0 if the table is not there.
    kind : EntryKind
    flags : tuple of str
        Names of the flags that are set, in the format of the table, lowest bit first.
    rights : Rights
        Accumulated over this entry and those above it.
    target : int or None
        Physical address of the next table or of the page; ``None`` where the walk ends without one.

    """

    level: int
    table: int
    index: int
    entry_bytes: int
    entry: int
    kind: EntryKind
    flags: tuple[str, ...]
    rights: Rights
    target: int | None

    @property
    def name(self) -> str:
        """The manual's name of the table: PML5, PML4, PDPT, PD or PT."""
        return _LEVEL_NAMES[self.level]

    @property
    def entry_address(self) -> int:
        """Physical address of the entry."""
        return self.table + self.entry_bytes * self.index

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses and entries are hexadecimal strings."""
        return {
            "level": self.level,
            "name": self.name,
            "table": f"{self.table:#x}",
            "index": self.index,
            "entry_address": f"{self.entry_address:#x}",
            "entry": f"{self.entry:#x}",
            "kind": str(self.kind),
            "flags": list(self.flags),
            "rights": str(self.rights),
            "target": None if self.target is None else f"{self.target:#x}",
        }


@dataclass(frozen=True, slots=True)
class WalkDimension:
    """The walk of one set of tables.

    Attributes
    ----------
    name : str
        Whose tables: ``guest`` or ``shadow``.
    mode : str
        What they are, in words: ``4-level``.
    root : int
        Physical address of the top table.
    levels : int
        How many there are from the root to a 4 KiB page.
    steps : tuple of WalkStep
        From the top level down; empty for a non-canonical address.
    end : EntryKind
        How the walk ended: ``EntryKind.PAGE`` if it reached one.
    address : int or None
        The physical address that the walk reaches, the offset in the page included.
    page_size : int or None
        Bytes of the page; ``None`` if the walk reached none.

    """

    name: str
    mode: str
    root: int
    levels: int
    steps: tuple[WalkStep, ...]
    end: EntryKind
    address: int | None = None
    page_size: int | None = None

    @property
    def rights(self) -> Rights | None:
        """The rights of the page; ``None`` if the walk reached none."""
        return self.steps[-1].rights if self.end is EntryKind.PAGE else None

    @property
    def result(self) -> str:
        """How the walk ended, in words."""
        if self.address is not None and self.page_size is not None:
            return f"{self.address:#x}, in a page of {size_name(self.page_size)}, {self.rights}"
        return f"{self.end} at level {self.steps[-1].level}" if self.steps else str(self.end)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "mode": self.mode,
            "root": f"{self.root:#x}",
            "levels": self.levels,
            "steps": [step.as_dict() for step in self.steps],
            "end": str(self.end),
            "address": None if self.address is None else f"{self.address:#x}",
            "page_size": self.page_size,
            "rights": None if self.rights is None else str(self.rights),
        }


@dataclass(frozen=True, slots=True, repr=False)
class PageWalk:
    """How a guest-virtual address is translated; its ``repr`` is a table for people.

    Attributes
    ----------
    gva : int
    guest : WalkDimension
        The walk of the guest's own tables.
    shadow : WalkDimension or None
        The walk of the shadow tables; ``None`` where there are none.

    """

    gva: int
    guest: WalkDimension
    shadow: WalkDimension | None = None

    @property
    def dimensions(self) -> tuple[WalkDimension, ...]:
        """The dimensions that there are."""
        return (self.guest,) if self.shadow is None else (self.guest, self.shadow)

    def __repr__(self) -> str:
        from .tables import walk_text  # noqa: PLC0415  loads rich, which only a picture needs

        return walk_text(self)

    def _repr_html_(self) -> str:
        from .tables import walk_html  # noqa: PLC0415  the same

        return walk_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses and entries are hexadecimal strings."""
        return {"gva": f"{self.gva:#x}", **{dimension.name: dimension.as_dict() for dimension in self.dimensions}}
