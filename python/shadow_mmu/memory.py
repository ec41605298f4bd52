"""Guest memory as the hypervisor reads and writes it: by gpa, past every guest table."""

import operator
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, NoReturn, SupportsIndex

import numpy as np

from shadow_mmu import _native
from shadow_mmu.checks import whole
from shadow_mmu.errors import ConfigError, MemoryRangeError
from shadow_mmu.types import MAX_GUEST_BYTES, Memslot

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

PIECE: Final = 4 << 20
"""Bytes of guest memory that one call of the core reads or writes: Python looks for signals between two."""


def _bytes_of(data: "Buffer | npt.NDArray[Any]") -> memoryview:
    """Return the plain bytes of a contiguous buffer."""
    if isinstance(data, np.ndarray):
        if data.dtype.hasobject or not data.flags.c_contiguous:
            raise ConfigError(f"data is an array of {data.dtype}, strides {data.strides}: expected contiguous numbers")
        return data.reshape(-1).view(np.uint8).data
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise ConfigError(f"data is {type(data).__name__}: expected bytes or a numpy array ({error})") from error


def _shown(slot: Memslot) -> str:
    return f"{slot.gpa:#x}+{slot.bytes:#x}{' read-only' if slot.read_only else ''}"


class Memory:
    """Guest memory from the hypervisor's side. Writes drop the shadow entries made from words that change.

    The hypervisor writes read-only memslots too: that is how a ROM gets its contents.
    """

    __slots__ = ("__weakref__", "_native", "_slots")

    def __init__(self, native: _native.Vm, slots: tuple[Memslot, ...]) -> None:
        self._native = native
        self._slots = slots

    @property
    def slots(self) -> tuple[Memslot, ...]:
        """The memslots, by ascending gpa."""
        return self._slots

    @property
    def size(self) -> int:
        """All memory together, in bytes."""
        return sum(slot.bytes for slot in self._slots)

    def _range(self, gpa: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
        """Refuse before the core is called what no slot could hold, so that nothing large is ever allocated."""
        try:
            first, count = operator.index(gpa), operator.index(length)
        except TypeError as error:
            raise MemoryRangeError(f"gpa {gpa!r}, length {length!r}: expected whole numbers") from error
        if first < 0 or count < 0 or first + count > MAX_GUEST_BYTES:
            raise MemoryRangeError(f"gpa {first:#x}, {count:#x} bytes: no memslot holds this range")
        return first, count

    def holds(self, gpa: int, length: int) -> bool:
        """Whether every byte of a range is in a memslot; slots may touch each other."""
        for slot in self._slots:
            if slot.gpa <= gpa < slot.gpa + slot.bytes and length > 0:
                count = min(length, slot.gpa + slot.bytes - gpa)
                gpa, length = gpa + count, length - count
        return length == 0

    def is_read_only(self, gpa: SupportsIndex) -> bool:
        """Whether the guest may only read what is at a gpa; false where no memslot is (E107).

        Raises
        ------
        MemoryRangeError
            It is no whole number.

        """
        try:
            at = operator.index(gpa)
        except TypeError as error:
            raise MemoryRangeError(f"gpa {gpa!r}: expected a whole number") from error
        return any(slot.read_only and slot.gpa <= at < slot.gpa + slot.bytes for slot in self._slots)

    def read(self, gpa: SupportsIndex, length: SupportsIndex) -> bytes:
        """Return ``length`` bytes at ``gpa``. Words are read one after the other while vCPUs may write.

        Raises
        ------
        MemoryRangeError
            Part of the range is in no memslot.
        ClosedError
            The machine was closed.

        """
        first, count = self._range(gpa, length)
        if count <= PIECE:
            return self._native.memory_read(first, count)
        self._native.memory_require(first, count)
        whole_range = BytesIO()
        for _, piece in self._pieces(first, count):
            whole_range.write(piece)
        return whole_range.getvalue()

    def _pieces(self, first: int, length: int) -> Iterator[tuple[int, bytes]]:
        """Read a range that is all in memslots piece by piece; give each with its offset."""
        for at in range(0, length, PIECE):
            yield at, self._native.memory_read(first + at, min(PIECE, length - at))

    def read_array(self, gpa: SupportsIndex, words: int = 512) -> "npt.NDArray[np.uint64]":
        """Return ``words`` 8-byte words at ``gpa`` (one page unless told otherwise) as a new array.

        Raises
        ------
        MemoryRangeError
            Part of the range is in no memslot.
        ClosedError
            The machine was closed.

        """
        count = whole("words", words, 0, MAX_GUEST_BYTES // 8)
        first, length = self._range(gpa, 8 * count)
        self._native.memory_require(first, length)
        read = np.empty(count, np.dtype("<u8"))
        for at, piece in self._pieces(first, length):
            read[at // 8 : (at + len(piece)) // 8] = np.frombuffer(piece, read.dtype)
        return read

    def write(self, gpa: SupportsIndex, data: "Buffer | npt.NDArray[Any]") -> None:
        """Write bytes, or the bytes of a contiguous array, at ``gpa``.

        Takes the mmu_lock once (reason ``host``) for each MiB begun. Ctrl-C ends a write of more than 4 MiB between two
        pieces; what was written stays.

        Raises
        ------
        MemoryRangeError
            Part of the range is in no memslot; nothing was written.
        ConfigError
            ``data`` is no contiguous buffer of plain values.
        ClosedError
            The machine was closed.

        """
        view = _bytes_of(data)
        first, length = self._range(gpa, view.nbytes)
        self._native.memory_require(first, length)
        for at in range(0, length, PIECE):
            self._native.memory_write(first + at, view[at : at + PIECE])

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: it is part of a machine."""
        raise TypeError("the Memory of a Vm cannot be copied or pickled: read it")

    def __repr__(self) -> str:
        return f"<Memory {', '.join(map(_shown, self._slots))}>"
