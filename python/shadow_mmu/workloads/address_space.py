"""Guest page tables, built in guest memory: map, unmap, protect, large pages, 4 and 5 levels.

Anything with ``read(gpa, length)`` and ``write(gpa, bytes)`` will do as memory: ``vm.memory``, the model's, or an
:class:`Image` that is written into a machine later, in one piece.

>>> image = Image(1 << 20)
>>> space = AddressSpace(image, FrameAllocator(0x10000, 0x40000))
>>> space.map(0x400000, 0x5000, user=True, write=False)
>>> hex(space.entry(0x400000)), hex(space.translate(0x400123))
('0x5025', '0x5123')
"""

from typing import Final, Protocol

import numpy as np

from shadow_mmu.errors import ConfigError, MemoryRangeError
from shadow_mmu.types import PAGE_SIZE

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
NO_EXECUTE: Final = 1 << 63
_FRAME: Final = (1 << 52) - PAGE_SIZE
_TABLE: Final = PRESENT | WRITABLE | USER | ACCESSED


class TableMemory(Protocol):
    """Guest memory from the hypervisor's side."""

    def read(self, gpa: int, length: int, /) -> bytes:
        """Return bytes."""

    def write(self, gpa: int, data: bytes, /) -> None:
        """Write bytes."""


class Image:
    """Guest memory that is no machine's yet.

    Parameters
    ----------
    size : int
        Bytes, a multiple of 4096; gpa 0 is its start.

    """

    __slots__ = ("words",)

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE_SIZE:
            raise ConfigError(f"an image of {size} bytes: expected a positive multiple of {PAGE_SIZE}")
        self.words = np.zeros(size // 8, np.dtype("<u8"))

    def _bytes(self, gpa: int, length: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        if gpa < 0 or length < 0 or gpa + length > self.words.nbytes:
            raise MemoryRangeError(f"gpa {gpa:#x}, {length:,} bytes: the image has {self.words.nbytes:#x}")
        return self.words.view(np.uint8)[gpa : gpa + length]

    def read(self, gpa: int, length: int, /) -> bytes:
        """Return bytes."""
        return self._bytes(gpa, length).tobytes()

    def write(self, gpa: int, data: bytes, /) -> None:
        """Write bytes."""
        self._bytes(gpa, len(data))[:] = np.frombuffer(data, np.uint8)


class FrameAllocator:
    """Hands out page frames of guest memory, ascending.

    Parameters
    ----------
    start, end : int
        The gpa range, page aligned.

    """

    __slots__ = ("_end", "_next")

    def __init__(self, start: int, end: int) -> None:
        if start % PAGE_SIZE or end % PAGE_SIZE or not 0 <= start <= end:
            raise ConfigError(f"frames {start:#x}..{end:#x}: expected an ascending page-aligned range")
        self._next, self._end = start, end

    @property
    def next(self) -> int:
        """The frame that comes next."""
        return self._next

    def take(self, align: int = PAGE_SIZE, size: int = PAGE_SIZE) -> int:
        """Return the gpa of ``size`` fresh bytes, aligned.

        Raises
        ------
        MemoryRangeError
            There are not that many left.

        """
        gpa = -(-self._next // align) * align
        if gpa + size > self._end:
            raise MemoryRangeError(f"no {size:,} bytes left below {self._end:#x}")
        self._next = gpa + size
        return gpa


class AddressSpace:
    """One set of guest page tables.

    Parameters
    ----------
    memory : TableMemory
        Where the tables lie.
    frames : FrameAllocator
        Where new tables come from.
    root : int, optional
        gpa of an existing or zeroed top table; a new one unless given.
    levels : int
        4 or 5.

    """

    __slots__ = ("frames", "levels", "memory", "root")

    def __init__(
        self, memory: TableMemory, frames: FrameAllocator, *, root: int | None = None, levels: int = 4
    ) -> None:
        if levels not in (4, 5):
            raise ConfigError(f"{levels} levels: expected 4 or 5")
        self.memory, self.frames, self.levels = memory, frames, levels
        self.root = frames.take() if root is None else root

    def _word(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 8), "little")

    def write_entry(self, gpa: int, entry: int) -> None:
        """Write one table entry at its gpa."""
        self.memory.write(gpa, entry.to_bytes(8, "little"))

    def slot(self, gva: int, level: int = 1, *, create: bool = False) -> int:
        """Return the gpa of the entry that covers ``gva`` at ``level``.

        Raises
        ------
        MemoryRangeError
            A table on the way is missing and ``create`` is not set, or a large page is in the way.

        """
        table = self.root
        for above in range(self.levels, level, -1):
            place = table + 8 * (gva >> (12 + 9 * (above - 1)) & 511)
            entry = self._word(place)
            if not entry & PRESENT:
                if not create:
                    raise MemoryRangeError(f"no level-{above - 1} table for gva {gva:#x}")
                entry = self.frames.take() | _TABLE
                self.write_entry(place, entry)
            elif above <= 3 and entry & LARGE:
                raise MemoryRangeError(f"gva {gva:#x} is in a large page at level {above}")
            table = entry & _FRAME
        return table + 8 * (gva >> (12 + 9 * (level - 1)) & 511)

    def map(
        self,
        gva: int,
        gpa: int,
        *,
        level: int = 1,
        pages: int = 1,
        user: bool = False,
        write: bool = True,
        execute: bool = True,
        accessed: bool = True,
        dirty: bool | None = None,
    ) -> None:
        """Map ``pages`` pages of 4 KiB, 2 MiB or 1 GiB (``level`` 1, 2, 3). D is set where W is, unless told otherwise.

        Raises
        ------
        ConfigError
            ``level`` is none of these, or an address is not aligned to the page size.
        MemoryRangeError
            No frame is left for a table.

        """
        if level not in (1, 2, 3):
            raise ConfigError(f"a page at level {level}: expected 1, 2 or 3")
        span = PAGE_SIZE << (9 * (level - 1))
        if gva % span or gpa % span:
            raise ConfigError(f"gva {gva:#x}, gpa {gpa:#x}: expected multiples of {span:#x}")
        bits = PRESENT | WRITABLE * write | USER * user | ACCESSED * accessed | LARGE * (level > 1)
        bits |= DIRTY * (write if dirty is None else dirty) | NO_EXECUTE * (not execute)
        for page in range(pages):
            self.write_entry(self.slot(gva + page * span, level, create=True), (gpa + page * span) | bits)

    def unmap(self, gva: int, *, level: int = 1) -> None:
        """Clear the entry that covers ``gva``. The guest owes an INVLPG."""
        self.write_entry(self.slot(gva, level), 0)

    def protect(self, gva: int, *, set_bits: int = 0, clear_bits: int = 0, level: int = 1) -> None:
        """Set and clear bits of the entry that covers ``gva``."""
        place = self.slot(gva, level)
        self.write_entry(place, self._word(place) & ~clear_bits | set_bits)

    def entry(self, gva: int, level: int = 1) -> int:
        """Return the entry that covers ``gva`` at ``level``."""
        return self._word(self.slot(gva, level))

    def share(self, gva: int, other: "AddressSpace") -> None:
        """Let the top entry that covers ``gva`` point where the other space's does."""
        self.write_entry(self.slot(gva, self.levels), other.entry(gva, self.levels))

    def translate(self, gva: int) -> int:
        """Return the gpa of ``gva`` by a plain walk, whatever the rights.

        Raises
        ------
        MemoryRangeError
            It is not mapped.

        """
        table = self.root
        for level in range(self.levels, 0, -1):
            span = PAGE_SIZE << (9 * (level - 1))
            entry = self._word(table + 8 * (gva // span & 511))
            if not entry & PRESENT:
                break
            if level == 1 or (level <= 3 and entry & LARGE):
                return (entry & _FRAME & ~(span - 1)) | (gva & (span - 1))
            table = entry & _FRAME
        raise MemoryRangeError(f"gva {gva:#x} is not mapped")
