"""Many translations at once: what ``Vcpu.translate_many`` takes and gives.

>>> from shadow_mmu import Vm
>>> with Vm(memory="1MiB", vcpus=1) as vm:
...     for table, entry in ((0, 0x1007), (0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x70000005)):
...         vm.memory.write(table, entry.to_bytes(8, "little"))
...     found = vm.vcpus[0].translate_many([0x123, 0x1000, 1 << 63], "read", user=True)
>>> found
<Translations of 3 addresses: 1 translated, 1 page fault, 1 not canonical>
>>> [hex(gpa) for gpa in found.gpa[found.translated]], found.error.tolist()
(['0x70000123'], [-1, 4, -2])
"""

import operator
from array import array
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from shadow_mmu.checks import shown
from shadow_mmu.errors import ProgramError
from shadow_mmu.frozen import digest, same

_GVA: Final = np.dtype(np.uint64)
_EXPECTED: Final = "expected an array of unsigned integers or a flat list of integers in 0..2**64"


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class Translations:
    """Where many addresses lead; the arrays have the shape of the addresses and cannot be written.

    Attributes
    ----------
    gpa : numpy.ndarray of uint64
        The guest-physical addresses, whether or not a memslot has them; ``NO_GPA`` where there is none.
    error : numpy.ndarray of int32
        ``TRANSLATED``, ``NOT_CANONICAL`` (#GP), or else the error code of the page fault, which may be 0.
    translated : numpy.ndarray of bool
        Where there is a gpa.

    """

    TRANSLATED: ClassVar[int] = -1
    NOT_CANONICAL: ClassVar[int] = -2
    NO_GPA: ClassVar[int] = (1 << 64) - 1

    gpa: npt.NDArray[np.uint64]
    error: npt.NDArray[np.int32]

    __eq__ = same
    __hash__ = digest

    @property
    def translated(self) -> "npt.NDArray[np.bool_]":
        """Where there is a gpa."""
        found: npt.NDArray[np.bool_] = self.error == self.TRANSLATED
        return found

    def __repr__(self) -> str:
        """Count them."""
        translated, wrong = int(self.translated.sum()), int((self.error == self.NOT_CANONICAL).sum())
        faults = self.error.size - translated - wrong
        parts = [(translated, "translated"), (faults, f"page fault{'s' * (faults != 1)}"), (wrong, "not canonical")]
        counted = ", ".join(f"{count:,} {name}" for count, name in parts if count) or "none"
        return f"<Translations of {self.error.size:,} address{'es' * (self.error.size != 1)}: {counted}>"


_SET_GPA: Final = Translations.__dict__["gpa"].__set__
_SET_ERROR: Final = Translations.__dict__["error"].__set__


def of_arrays(
    gpa: "npt.NDArray[np.uint64]", error: "npt.NDArray[np.int32]", shape: tuple[int, ...] | None = None
) -> Translations:
    """Make it of what the core has written; ``shape`` is ``None`` in one dimension."""
    if shape is not None:
        gpa, error = gpa.reshape(shape), error.reshape(shape)
    # As the constructor of a frozen dataclass does, in half the time.
    made = object.__new__(Translations)
    _SET_GPA(made, gpa)
    _SET_ERROR(made, error)
    return made


def as_addresses(gvas: object) -> "npt.NDArray[np.uint64]":
    """Return addresses as a C-contiguous array of uint64 of the same shape, a new one unless they are that.

    Raises
    ------
    ProgramError
        They are not all whole numbers in 0..2**64.

    """
    if isinstance(gvas, (list, tuple, range)):
        return _from_integers(gvas)
    if isinstance(gvas, (str, bytes, bytearray)) or not (
        hasattr(gvas, "__array__") or hasattr(gvas, "__buffer__") or _is_buffer(gvas)
    ):
        raise ProgramError(f"gvas is {type(gvas).__name__}: {_EXPECTED}")
    try:
        found: npt.NDArray[Any] = np.asarray(gvas)
    except (TypeError, ValueError) as error:
        raise ProgramError(f"gvas is {type(gvas).__name__}, which numpy cannot read ({error}): {_EXPECTED}") from error
    if found.ndim == 0:
        raise ProgramError(f"gvas is one value, {gvas!r} (translate() takes one): {_EXPECTED}")
    if found.dtype.kind == "O":
        return _from_integers(found.ravel().tolist()).reshape(found.shape)
    if found.dtype.kind not in "ui" and found.size:
        raise ProgramError(f"gvas is an array of {found.dtype}: {_EXPECTED}")
    if found.dtype.kind == "i" and found.size and found.min() < 0:
        raise ProgramError(f"gvas has {int(found.min())}: {_EXPECTED}")
    return np.array(found, _GVA, order="C")


def _is_buffer(candidate: object) -> bool:
    try:
        memoryview(candidate).release()  # type: ignore[arg-type]  # that is what is asked
    except TypeError:
        return False
    return True


def _from_integers(gvas: "list[Any] | tuple[Any, ...] | range") -> "npt.NDArray[np.uint64]":
    """Convert one by one: numpy makes floating-point numbers of large integers, and 1 of 1.5."""
    try:
        return np.array(array("Q", map(operator.index, gvas)), _GVA)
    except (TypeError, OverflowError) as error:
        for number, gva in enumerate(gvas):
            if not hasattr(gva, "__index__") or not 0 <= operator.index(gva) < 1 << 64:
                text = hex(gva) if isinstance(gva, int) and gva.bit_length() <= 1024 else shown(gva)
                raise ProgramError(f"gvas[{number}] is {text}: {_EXPECTED}") from error
        raise
