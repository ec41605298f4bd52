"""Guest memory: memslots of 4 KiB frames, each an array of 512 words made when it is first written.

Guest page tables live here and nowhere else. This file knows nothing of shadow pages: what a hypervisor-side write does to
them is :mod:`.writes`.
"""

from array import array
from collections.abc import Iterable
from typing import TypeAlias

from shadow_mmu.errors import ConfigError, MemoryRangeError

from .constants import ENTRIES, PAGE_OFFSET, PAGE_SHIFT, PAGE_SIZE, WORD

_ZERO_PAGE = bytes(PAGE_SIZE)


Slot: TypeAlias = tuple[int, int] | tuple[int, int, bool]
"""A memslot: first gpa, bytes, and whether the guest may only read it."""


class GuestMemory:
    """The words of guest-physical memory.

    Parameters
    ----------
    slots : iterable of (gpa, bytes) or (gpa, bytes, read_only)
        The memslots, page aligned, apart from each other.
    limit : int
        First gpa that no slot may reach.

    Raises
    ------
    ConfigError
        A slot is misaligned, empty, above the limit, or overlaps another.

    """

    __slots__ = ("limit", "pages", "read_only", "slots")

    def __init__(self, slots: Iterable[Slot], limit: int) -> None:
        self.limit = limit
        self.slots: list[tuple[int, int]] = []
        """First frame and number of frames of each slot."""
        self.read_only: list[tuple[int, int]] = []
        """Those of them that the guest may not write (E107)."""
        self.pages: dict[int, array[int]] = {}
        """The 512 words of each frame that was ever written."""
        for slot in slots:
            self.add_slot(*slot)

    def add_slot(self, gpa: int, length: int, read_only: bool = False) -> None:  # noqa: FBT001, FBT002  # the fields of a slot
        """Add a memslot of ``length`` bytes at ``gpa``; its memory reads as 0.

        Raises
        ------
        ConfigError
            As for the constructor; nothing was added.

        """
        if gpa % PAGE_SIZE or gpa < 0 or length % PAGE_SIZE or length <= 0:
            raise ConfigError(f"memslot {gpa:#x}+{length:#x}: expected multiples of {PAGE_SIZE}, the length not 0")
        if gpa + length > self.limit:
            raise ConfigError(f"memslot {gpa:#x}+{length:#x}: expected to end at or below {self.limit:#x}")
        first, frames = gpa >> PAGE_SHIFT, length >> PAGE_SHIFT
        for other, count in self.slots:
            if first < other + count and other < first + frames:
                raise ConfigError(
                    f"memslot {gpa:#x}+{length:#x}: expected no overlap with {other << PAGE_SHIFT:#x}+{count << PAGE_SHIFT:#x}"
                )
        self.slots.append((first, frames))
        if read_only:
            self.read_only.append((first, frames))

    def has(self, gfn: int) -> bool:
        """Whether the frame lies in a memslot."""
        return gfn in self.pages or any(first <= gfn < first + frames for first, frames in self.slots)

    def is_read_only(self, gfn: int) -> bool:
        """Whether the frame lies in a memslot that the guest may only read."""
        return any(first <= gfn < first + frames for first, frames in self.read_only)

    def may_mark(self, gpa: int) -> bool:
        """Whether a walk may set A and D in the entry at ``gpa`` (E107)."""
        return not self.is_read_only(gpa >> PAGE_SHIFT)

    def word(self, gpa: int) -> int:
        """Read the aligned 8-byte word at ``gpa``, which lies in a slot."""
        page = self.pages.get(gpa >> PAGE_SHIFT)
        return page[(gpa & PAGE_OFFSET) >> 3] if page is not None else 0

    def set_word(self, gpa: int, value: int) -> None:
        """Write the aligned 8-byte word at ``gpa``, which lies in a slot."""
        self.page(gpa >> PAGE_SHIFT)[(gpa & PAGE_OFFSET) >> 3] = value

    def page(self, gfn: int) -> "array[int]":
        """Return the 512 words of a frame, to be changed in place."""
        page = self.pages.get(gfn)
        if page is None:
            page = self.pages[gfn] = array("Q", _ZERO_PAGE)
        return page

    def load(self, gpa: int, size: int) -> int:
        """Read ``size`` bytes within one page, little endian."""
        first = self.word(gpa & ~7)
        if size == 8 and not gpa & 7:
            return first
        both = first | (self.word((gpa & ~7) + 8) << 64 if (gpa & 7) + size > 8 else 0)
        return both >> ((gpa & 7) * 8) & ((1 << size * 8) - 1)

    def store(self, gpa: int, value: int, size: int) -> None:
        """Write the low ``size`` bytes of ``value`` within one page, little endian."""
        base, shift = gpa & ~7, (gpa & 7) * 8
        mask = ((1 << size * 8) - 1) << shift
        bits = value << shift & mask
        self.set_word(base, (self.word(base) & ~mask | bits) & WORD)
        if mask >> 64:
            self.set_word(base + 8, self.word(base + 8) & ~(mask >> 64) | bits >> 64)

    def check_range(self, gpa: int, length: int) -> None:
        """Refuse a range that leaves the memslots.

        Raises
        ------
        MemoryRangeError
            Some byte of it lies in no slot, or a number is negative.

        """
        if gpa >= 0 and length >= 0:
            at, end = gpa >> PAGE_SHIFT, (gpa + length + PAGE_OFFSET) >> PAGE_SHIFT
            while at < end:
                reach = [first + frames for first, frames in self.slots if first <= at < first + frames]
                if not reach:
                    break
                at = reach[0]
            else:
                return
        raise MemoryRangeError(f"{length} bytes at gpa {gpa:#x}: expected a range inside the memslots")

    def read(self, gpa: int, length: int) -> bytes:
        """Read bytes.

        Raises
        ------
        MemoryRangeError
            The range leaves the memslots.

        """
        self.check_range(gpa, length)
        parts = []
        while length:
            offset = gpa & PAGE_OFFSET
            count = min(length, PAGE_SIZE - offset)
            page = self.pages.get(gpa >> PAGE_SHIFT)
            parts.append((page.tobytes() if page is not None else _ZERO_PAGE)[offset : offset + count])
            gpa, length = gpa + count, length - count
        return b"".join(parts)

    def words_of(self, gpa: int, data: bytes) -> Iterable[tuple[int, int]]:
        """Give the aligned words that a write of ``data`` makes, in ascending order: (gpa, new word)."""
        start, end = gpa & ~7, (gpa + len(data) + 7) & ~7
        head, tail = gpa - start, end - gpa - len(data)
        before = self.word(start).to_bytes(8, "little")[:head] if head else b""
        after = self.word(end - 8).to_bytes(8, "little")[8 - tail :] if tail else b""
        words = array("Q", before + data + after)
        return zip(range(start, end, 8), words, strict=True)


assert array("Q").itemsize == 8
assert ENTRIES * 8 == PAGE_SIZE
