"""What ``translate_many`` is compared with: the walk of many addresses in numpy, as fast as we could write it.

All of them walk 4-level tables for a write by the user. Two follow the addresses and check nothing. Two give the same answers as
``translate_many``, error codes and large pages included: they look once for all entries whether anything is odd about any of
them, and walk those addresses again that have something. Results go into arrays that are made once.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]
Errors = npt.NDArray[np.int32]

SHIFTS: Final = (39, 30, 21, 12)
FRAME: Final = 0x000F_FFFF_FFFF_F000
PRESENT, RIGHTS, LARGE = 1, 6, 1 << 7
RESERVED: Final = 0x000F_C000_0000_0000  # of a processor with physical addresses of 46 bits
ABOVE: Final = RESERVED | LARGE | PRESENT  # what is odd about an entry above level 1, P inverted
TRANSLATED, NOT_CANONICAL = -1, -2
NOT_PRESENT, DENIED, BROKEN = 6, 7, 15  # W | U; P | W | U; P | W | U | RSVD


def expressions(tables: Words, gvas: Words) -> Words:
    """Walk level by level in expressions, as one would write it first: no checks."""
    table = np.zeros(len(gvas), np.int64)
    for shift in SHIFTS:
        table = tables[(table & FRAME) // 8 + (gvas >> shift & 511)]
    return table & FRAME | gvas & 0xFFF


def with_an_end(tables: Words) -> Words:
    """Return them with an entry that is not present behind them: ``take`` finds it in place of all that are outside memory."""
    return np.append(tables, 0)


class Unchecked:
    """Level by level: no checks at all."""

    def __init__(self, tables: Words, count: int) -> None:
        self.tables = tables
        self.index, self.entry = np.empty(count, np.int64), np.empty(count, np.int64)

    def walk(self, gvas: Words, gpa: Words, _error: Errors) -> None:
        index, entry = self.index[: len(gvas)], self.entry[: len(gvas)]
        entry[:] = 0
        for shift in SHIFTS:
            np.right_shift(gvas, shift, out=index)
            index &= 511
            entry &= FRAME
            entry >>= 3
            index |= entry
            np.take(self.tables, index, out=entry, mode="clip")
        entry &= FRAME
        np.bitwise_and(gvas, 0xFFF, out=gpa)
        gpa |= entry


class ByLevels:
    """Level by level, with the answers of ``translate_many``."""

    def __init__(self, tables: Words, count: int) -> None:
        self.tables = with_an_end(tables)
        self.index, self.entry, self.rights, self.odd, self.other = (np.empty(count, np.int64) for _ in range(5))

    def walk(self, gvas: Words, gpa: Words, error: Errors) -> None:
        count = len(gvas)
        index, entry, rights, odd = self.index[:count], self.entry[:count], self.rights[:count], self.odd[:count]
        other = self.other[:count]
        for shift in SHIFTS:
            np.right_shift(gvas, shift, out=index)
            index &= 511
            if shift != SHIFTS[0]:
                entry &= FRAME
                entry >>= 3
                index |= entry
            np.take(self.tables, index, out=entry, mode="clip")
            if shift == SHIFTS[0]:
                np.copyto(rights, entry)
                np.bitwise_xor(entry, PRESENT, out=odd)
                odd &= ABOVE
            else:
                rights &= entry
                np.bitwise_xor(entry, PRESENT, out=other)
                other &= ABOVE if shift != SHIFTS[-1] else RESERVED | PRESENT
                odd |= other
        rights &= RIGHTS
        rights ^= RIGHTS
        odd |= rights
        np.right_shift(gvas, 47, out=other)
        odd |= other  # of the upper half, or not canonical
        answer(self.tables, gvas, entry, odd, gpa=gpa, error=error)


class ByRegions:
    """With the same answers: the upper tables once for each 2 MiB between the lowest address and the highest, the last level for all.

    This is for addresses that are close together, as those of the benches are: what lies between them is walked too.
    """

    def __init__(self, tables: Words, count: int) -> None:
        self.tables = with_an_end(tables)
        self.index, self.entry, self.odd = (np.empty(count, np.int64) for _ in range(3))
        self.first, self.starts = 0, self.index

    def begin(self, gvas: Words) -> None:
        """Walk the upper tables for all addresses that are to come."""
        self.first = int(gvas.min()) >> 21
        regions = np.arange(self.first, (int(gvas.max()) >> 21) + 1)
        entry, rights, odd = np.zeros(len(regions), np.int64), np.full(len(regions), -1), regions >> 26
        for shift in (18, 9, 0):
            index = (entry & FRAME) >> 3 | regions >> shift & 511
            entry = np.take(self.tables, index, mode="clip")
            rights &= entry
            odd |= (entry ^ PRESENT) & ABOVE
        odd |= (rights & RIGHTS) ^ RIGHTS
        # A region that is odd starts below 0, where no table does.
        self.starts = np.where(odd != 0, -512, (entry & FRAME) >> 3)

    def walk(self, gvas: Words, gpa: Words, error: Errors) -> None:
        count = len(gvas)
        index, entry, odd = self.index[:count], self.entry[:count], self.odd[:count]
        np.right_shift(gvas, 21, out=index)
        index -= self.first
        np.take(self.starts, index, out=entry, mode="clip")
        np.right_shift(gvas, 12, out=index)
        index &= 511
        index |= entry
        np.take(self.tables, index, out=entry, mode="clip")
        np.bitwise_xor(entry, PRESENT | RIGHTS, out=odd)
        odd &= RESERVED | PRESENT | RIGHTS
        np.bitwise_and(index, -1 << 63, out=index)  # of a region that is odd
        odd |= index
        answer(self.tables, gvas, entry, odd, gpa=gpa, error=error)


def answer(tables: Words, gvas: Words, entry: Words, odd: Words, *, gpa: Words, error: Errors) -> None:
    """Make answers of the last entries, which are changed; where something is odd, of a walk with every check."""
    entry &= FRAME
    np.bitwise_and(gvas, 0xFFF, out=gpa)
    gpa |= entry
    error.fill(TRANSLATED)
    if odd.any():
        oddly(tables, gvas, np.flatnonzero(odd), gpa, error)


def oddly(tables: Words, gvas: Words, which: Words, gpa: Words, error: Errors) -> None:
    """Walk some of the addresses with every check, and put their answers in their places."""
    some = gvas[which]
    found, told = np.full(len(some), -1), np.full(len(some), TRANSLATED, np.int32)
    going = np.abs((some >> 47) * 2 + 1) == 1
    told[~going] = NOT_CANONICAL
    table, rights = np.zeros(len(some), np.int64), np.full(len(some), -1)
    for level, shift in zip((4, 3, 2, 1), SHIFTS, strict=True):
        index = (table >> 3) + (some >> shift & 511)
        entry = np.take(tables, index, mode="clip")
        missing = going & (entry & PRESENT == 0)
        told[missing] = NOT_PRESENT
        going &= ~missing
        large = (entry & LARGE != 0) & (level in (2, 3))
        size = 1 << shift
        reserved = RESERVED | (LARGE if level == 4 else 0)
        broken = going & (entry & np.where(large, reserved | (size - 1) & ~0x1FFF, reserved) != 0)
        told[broken] = BROKEN
        going &= ~broken
        rights &= entry
        leaf = going & (large | (level == 1))
        denied = leaf & (rights & RIGHTS != RIGHTS)
        told[denied] = DENIED
        ends = leaf & ~denied
        found[ends] = (entry & FRAME & -size | some & (size - 1))[ends]
        going &= ~leaf
        table = entry & FRAME
    gpa[which], error[which] = found, told
