"""Operations and outcomes as plain tuples (``docs/machine.md`` §2).

The records are those of :mod:`shadow_mmu.ops`, which needs numpy; the model does not, so it reads the same seven integers
from any tuple of them.
"""

import struct
from typing import Final, NamedTuple

from shadow_mmu.types import OutcomeCode

OP_RECORD: Final = struct.Struct("<BBHIQQQ")
OK: Final = int(OutcomeCode.OK)
PAGE_FAULT: Final = int(OutcomeCode.PAGE_FAULT)
GP: Final = int(OutcomeCode.GP)
UD: Final = int(OutcomeCode.UD)
MMIO: Final = int(OutcomeCode.MMIO)
TRIPLE_FAULT: Final = int(OutcomeCode.TRIPLE_FAULT)

OpTuple = tuple[int, int, int, int, int, int, int]


class Op(NamedTuple):
    """One operation: kind, flags, vCPU, aux, addr, value, expect.

    >>> Op.unpack(Op(2, addr=0x1000).pack())
    Op(kind=2, flags=0, vcpu=0, aux=0, addr=4096, value=0, expect=0)
    """

    kind: int
    flags: int = 0
    vcpu: int = 0
    aux: int = 0
    addr: int = 0
    value: int = 0
    expect: int = 0

    def pack(self) -> bytes:
        """Return the 32-byte record.

        Raises
        ------
        struct.error
            A field does not fit its width.

        """
        return OP_RECORD.pack(*self)

    @classmethod
    def unpack(cls, record: bytes) -> "Op":
        """Read a 32-byte record.

        Raises
        ------
        struct.error
            The record has another length.

        """
        return cls(*OP_RECORD.unpack(record))


class Outcome(NamedTuple):
    """How an operation ended.

    Attributes
    ----------
    code : int
        A :class:`shadow_mmu.OutcomeCode`.
    value : int
        The result (gpa of an access or store, value of a load, else 0); the address of a page fault; the gpa of an MMIO exit.
    error : int
        The error code of a page fault, else 0.

    """

    code: int
    value: int = 0
    error: int = 0


DONE: Final = Outcome(OK)
GENERAL_PROTECTION: Final = Outcome(GP)
INVALID_OPCODE: Final = Outcome(UD)
SHUT_DOWN: Final = Outcome(TRIPLE_FAULT)
