"""What is mapped, as ranges: neighbours of the same rights and page size merged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np

from shadow_mmu.model.constants import PAGE_SHIFT
from shadow_mmu.pagewalk import Rights

from .leaves import LEAF, Leaves, Trouble

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MappedRange", "Maps", "merge"]

_GLOBAL: Final = 1 << 8
_RANGE: Final = np.dtype(
    [
        ("start", "<u8"),
        ("pages", "<u8"),
        ("gpa", "<u8"),
        ("level", "u1"),
        ("access", "u1"),
        ("global", "?"),
        ("runs", "<u8"),
    ]
)


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A range of guest-virtual addresses that is mapped alike.

    Attributes
    ----------
    start, end : int
        Its first address and the first behind it (2^64 for the last page).
    page_size : int
        4 KiB, 2 MiB or 1 GiB.
    rights : Rights
        Accumulated over all levels.
    is_global : bool
        The G bit of the leaf entries; it has its effect with CR4.PGE only.
    gpa : int
        Where the first page is in guest-physical memory.
    runs : int
        Pieces that are contiguous in guest-physical memory: 1 if the whole range is.

    """

    start: int
    end: int
    page_size: int
    rights: Rights
    is_global: bool
    gpa: int
    runs: int

    @property
    def pages(self) -> int:
        """Number of pages."""
        return (self.end - self.start) // self.page_size

    def __str__(self) -> str:
        return f"{self.start:#018x}-{self.end:#018x} {self.rights}{'g' if self.is_global else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses are hexadecimal strings."""
        return {
            "start": f"{self.start:#x}",
            "end": f"{self.end:#x}",
            "page_size": self.page_size,
            "pages": self.pages,
            "rights": str(self.rights)[:3],
            "user": self.rights.user,
            "global": self.is_global,
            "gpa": f"{self.gpa:#x}",
            "runs": self.runs,
        }


class Maps(Sequence[MappedRange]):
    """The ranges that a set of tables maps, lowest first; a sequence of :class:`MappedRange`.

    Attributes
    ----------
    cr3, levels : int
    leaves, tables : int
        Pages mapped, tables read.
    by_level : dict
        Pages by level: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB.
    absent, reserved : Trouble
        Tables that are not in the dump, entries with a reserved bit set: nothing is mapped through them.

    """

    __slots__ = ("_rows", "absent", "by_level", "cr3", "leaves", "levels", "reserved", "tables")

    def __init__(self, rows: "npt.NDArray[Any]", leaves: Leaves, *, cr3: int, levels: int) -> None:
        self._rows = rows
        self.cr3 = cr3
        self.levels = levels
        self.leaves = len(leaves)
        self.tables = leaves.tables
        self.by_level = leaves.by_level
        self.absent: Trouble = leaves.absent
        self.reserved: Trouble = leaves.reserved

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> MappedRange: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[MappedRange, ...]: ...
    def __getitem__(self, index: int | slice) -> MappedRange | tuple[MappedRange, ...]:
        if isinstance(index, slice):
            return tuple(map(_range, self._rows[index].tolist()))
        return _range(self._rows[index].item())

    def __iter__(self) -> Iterator[MappedRange]:
        for row in self._rows:
            yield _range(row.item())

    def __repr__(self) -> str:
        from .render import maps_text  # noqa: PLC0415  loads rich, which only a picture needs

        return maps_text(self)

    def _repr_html_(self) -> str:
        from .render import maps_html  # noqa: PLC0415  the same

        return maps_html(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form; addresses are hexadecimal strings."""
        return {
            "leaves": self.leaves,
            "by_level": {str(level): count for level, count in self.by_level.items()},
            "tables": self.tables,
            "absent_tables": self.absent.as_dict(),
            "reserved_entries": self.reserved.as_dict(),
            "ranges": [one.as_dict() for one in self],
        }


def _range(row: tuple[int, int, int, int, int, bool, int]) -> MappedRange:
    start, pages, gpa, level, access, is_global, runs = row
    size = 1 << PAGE_SHIFT + 9 * (level - 1)
    return MappedRange(start, start + pages * size, size, Rights.of_access(access), is_global, gpa, runs)


def merge(leaves: Leaves, *, cr3: int, levels: int, contiguous: bool = False) -> Maps:
    """Merge neighbouring pages of the same rights, G bit and page size.

    Parameters
    ----------
    leaves : Leaves
    cr3, levels : int
        Whose they are, to be told.
    contiguous : bool
        Merge only what is contiguous in physical memory too.

    """
    pages = leaves.rows
    assert pages.dtype == LEAF
    if not len(pages):
        return Maps(np.empty(0, _RANGE), leaves, cr3=cr3, levels=levels)
    size = np.uint64(1) << (np.uint64(PAGE_SHIFT) + np.uint64(9) * (pages["level"].astype(np.uint64) - np.uint64(1)))
    is_global = pages["entry"] & np.uint64(_GLOBAL) != 0
    alike = pages["gva"][1:] == (pages["gva"] + size)[:-1]
    for same in (pages["access"], pages["level"], is_global):
        alike &= same[1:] == same[:-1]
    joined = pages["gpa"][1:] == (pages["gpa"] + size)[:-1]
    if contiguous:
        alike &= joined
    first = np.flatnonzero(np.concatenate(([True], ~alike)))
    rows = np.empty(len(first), _RANGE)
    rows["start"], rows["gpa"] = pages["gva"][first], pages["gpa"][first]
    rows["level"], rows["access"], rows["global"] = pages["level"][first], pages["access"][first], is_global[first]
    rows["pages"] = np.diff(np.append(first, len(pages)))
    rows["runs"] = np.add.reduceat(np.concatenate(([True], ~(alike & joined))).astype(np.uint64), first)
    return Maps(rows, leaves, cr3=cr3, levels=levels)
