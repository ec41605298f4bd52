"""Guest-physical memory as a dump holds it: sorted ranges apart from each other, each a run of bytes of the file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shadow_mmu.model.constants import ENTRIES, PAGE_SHIFT, PAGE_SIZE

from .source import Source

if TYPE_CHECKING:
    import numpy.typing as npt

    from shadow_mmu.errors import DumpError

__all__ = ["MAX_SEGMENTS", "PHYSICAL_BITS", "PhysicalMemory", "PhysicalRange"]

MAX_SEGMENTS: Final = 1 << 20
"""Most segments of one dump: they are held in memory, 24 bytes each."""
PHYSICAL_BITS: Final = 52
"""The widest physical address of the architecture (SDM 3A 4.1.4)."""
_WORDS: Final = np.dtype("<u8")


@dataclass(frozen=True, slots=True)
class PhysicalRange:
    """One range of guest-physical memory; ``end`` is the first address behind it, ``offset`` its place in the file."""

    start: int
    end: int
    offset: int

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}"


class PhysicalMemory:
    """The bytes of guest-physical memory that a dump has.

    Parameters
    ----------
    source : Source
    start, length, offset, place : numpy.ndarray
        uint64, one row a segment: its guest-physical address, its bytes, where they are in the file, and the byte of the
        file that says so (for errors). Empty segments are left out. Two segments may overlap only where both mean the same
        bytes of the file, as in a dump that lists memory by virtual addresses.

    Raises
    ------
    DumpError
        A segment leaves the file or the 52-bit physical address space, two contradict each other, or there is none.

    """

    __slots__ = ("_end", "_offset", "_source", "_start")

    def __init__(
        self,
        source: Source,
        start: "npt.NDArray[np.uint64]",
        length: "npt.NDArray[np.uint64]",
        offset: "npt.NDArray[np.uint64]",
        place: "npt.NDArray[np.uint64]",
    ) -> None:
        self._source = source
        some = length > 0
        start, length, offset, place = start[some], length[some], offset[some], place[some]
        if not len(start):
            raise source.error("no memory in the dump", expected="at least one segment that is not empty")
        _check_bounds(source, start, length, offset, place)
        order = np.lexsort((length, start))
        start, end, offset, place = start[order], (start + length)[order], offset[order], place[order]
        reach = np.maximum.accumulate(end)[:-1]
        # The differences wrap alike: equal means that both segments put a byte of memory at the same place of the file.
        joins = (start[1:] <= reach) & (start[1:] - offset[1:] == start[:-1] - offset[:-1])
        overlaps = start[1:] < reach
        if (bad := np.flatnonzero(overlaps & ~joins)).size:
            at = int(bad[0]) + 1
            other = int(np.argmax(end[:at]))
            raise source.error(
                f"segment {int(start[at]):#x}-{int(end[at]):#x} overlaps {int(start[other]):#x}-{int(end[other]):#x}",
                offset=int(place[at]),
                expected="segments apart from each other",
            )
        first = np.concatenate(([True], ~joins))
        begin = np.flatnonzero(first)
        self._start = start[begin]
        self._offset = offset[begin]
        self._end = np.maximum.reduceat(end, begin)

    @property
    def ranges(self) -> tuple[PhysicalRange, ...]:
        """The ranges, lowest first, as few as there can be."""
        rows = zip(self._start.tolist(), self._end.tolist(), self._offset.tolist(), strict=True)
        return tuple(PhysicalRange(*row) for row in rows)

    @property
    def size(self) -> int:
        """Bytes of memory in the dump."""
        return int((self._end - self._start).sum())

    def __repr__(self) -> str:
        low, high = int(self._start[0]), int(self._end[-1])
        return f"<PhysicalMemory {self.size:,} bytes in {len(self._start):,} ranges, {low:#x}-{high:#x}>"

    def _range_of(self, gpa: int) -> int:
        """Return the row of the range that holds an address, -1 if none does."""
        if not 0 <= gpa < 1 << PHYSICAL_BITS:
            return -1
        row = int(np.searchsorted(self._start, np.uint64(gpa), side="right")) - 1
        return row if row >= 0 and gpa < int(self._end[row]) else -1

    def holds(self, gpa: int, length: int) -> bool:
        """Whether every byte of a range is in the dump; ranges may touch each other."""
        while length > 0:
            row = self._range_of(gpa)
            if row < 0:
                return False
            count = min(length, int(self._end[row]) - gpa)
            gpa, length = gpa + count, length - count
        return length == 0

    def read(self, gpa: int, length: int) -> bytes:
        """Return ``length`` bytes of guest-physical memory from ``gpa`` on.

        Raises
        ------
        DumpError
            The dump does not hold every byte of it.
        ClosedError
            The dump was closed.

        """
        # Before anything is read: a length that is not there costs nothing.
        if length < 0 or not self.holds(gpa, length):
            raise self.absent(f"{length} bytes of memory at gpa {gpa:#x}")
        parts = []
        while length:
            row = self._range_of(gpa)
            count = min(length, int(self._end[row]) - gpa)
            offset = int(self._offset[row]) + gpa - int(self._start[row])
            parts.append(self._source.read(offset, count, f"memory at gpa {gpa:#x}"))
            gpa, length = gpa + count, length - count
        return b"".join(parts)

    def error(self, what: str, *, found: object = None, expected: object = None) -> "DumpError":
        """Return the error that this dump has ``what``."""
        return self._source.error(what, found=found, expected=expected)

    def absent(self, what: str) -> "DumpError":
        """Return the error that ``what`` is not all in the dump."""
        low, high = int(self._start[0]), int(self._end[-1])
        return self._source.error(
            f"{what} not in the dump", expected=f"memory in its {len(self._start):,} ranges, {low:#x} to {high:#x}"
        )

    def tables(self, frames: "npt.NDArray[np.uint64]") -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]":
        """Read whole 4 KiB pages as words.

        Parameters
        ----------
        frames : numpy.ndarray
            uint64, n frame numbers.

        Returns
        -------
        words : numpy.ndarray
            uint64, n x 512; zeros where the dump does not hold the page.
        there : numpy.ndarray
            bool, n: whether it does.

        Raises
        ------
        DumpError
            The file cannot be read.
        ClosedError
            The dump was closed.

        """
        words = np.zeros((len(frames), ENTRIES), _WORDS)
        there = np.zeros(len(frames), np.bool_)
        gpas = frames.astype(np.uint64) << np.uint64(PAGE_SHIFT)
        rows = np.searchsorted(self._start, gpas, side="right") - 1
        behind = self._end[np.maximum(rows, 0)]
        whole = (rows >= 0) & (gpas < behind) & (behind - np.minimum(gpas, behind) >= PAGE_SIZE)
        offsets = self._offset[np.maximum(rows, 0)] + gpas - self._start[np.maximum(rows, 0)]
        for row, (gpa, offset, one_range) in enumerate(
            zip(gpas.tolist(), offsets.tolist(), whole.tolist(), strict=True)
        ):
            if one_range:
                page = self._source.read(offset, PAGE_SIZE, f"memory at gpa {gpa:#x}")
            elif self.holds(gpa, PAGE_SIZE):  # a page of two ranges that touch
                page = self.read(gpa, PAGE_SIZE)
            else:
                continue
            words[row] = np.frombuffer(page, _WORDS)
            there[row] = True
        return words, there


def _check_bounds(
    source: Source,
    start: "npt.NDArray[np.uint64]",
    length: "npt.NDArray[np.uint64]",
    offset: "npt.NDArray[np.uint64]",
    place: "npt.NDArray[np.uint64]",
) -> None:
    """Refuse the first segment that leaves the file or the address space; no sum here can wrap."""
    size, limit = np.uint64(source.size), np.uint64(1 << PHYSICAL_BITS)
    outside = (offset > size) | (length > size - np.minimum(offset, size))
    if (bad := np.flatnonzero(outside)).size:
        at = int(bad[0])
        raise source.error(
            f"segment of gpa {int(start[at]):#x} leaves the file",
            offset=int(place[at]),
            found=f"{int(length[at]):#x} bytes at {int(offset[at]):#x}",
            expected=f"an end at or below {source.size:#x}",
        )
    high = (start > limit) | (length > limit - np.minimum(start, limit))
    if (bad := np.flatnonzero(high)).size:
        at = int(bad[0])
        raise source.error(
            "segment leaves the physical address space",
            offset=int(place[at]),
            found=f"{int(length[at]):#x} bytes at gpa {int(start[at]):#x}",
            expected=f"an end at or below {1 << PHYSICAL_BITS:#x}",
        )
