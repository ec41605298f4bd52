"""The vocabulary that needs no other package: operation kinds, flags, outcome codes, memslots (``docs/machine.md`` §2).

The numpy record types of the same things are in :mod:`shadow_mmu.ops`.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Literal

from shadow_mmu.errors import MemoryRangeError

PAGE_SIZE: Final = 4096
MAX_VCPUS: Final = 1024
MAX_PREVIOUS_ROOTS: Final = 16
MAX_GUEST_BYTES: Final = 1 << 46
INVALID_ROOT: Final = (1 << 64) - 1

AccessKind = Literal["read", "write", "fetch"]


class OpKind(IntEnum):
    """What an operation does; the value is the ``kind`` byte of its record."""

    NOP = 0
    WRITE_CR0 = 1
    WRITE_CR3 = 2
    WRITE_CR4 = 3
    WRITE_EFER = 4
    INVLPG = 5
    READ = 6
    WRITE = 7
    FETCH = 8
    LOAD = 9
    STORE = 10
    HOST_STORE = 11
    HOST_PAGE = 12
    SYNC_TLB = 13
    WORK = 14
    ZAP_GFN = 15
    WRITE_PKRU = 16


class OpFlag(IntFlag):
    """How an operation is done; the value is the ``flags`` byte of its record."""

    NONE = 0
    USER = 1
    AC = 2
    IMPLICIT = 4
    HOST = 8
    CHECK = 16
    FUSED = 32


class OutcomeCode(IntEnum):
    """How an operation ended."""

    OK = 0
    PAGE_FAULT = 1
    GP = 2
    MMIO = 3
    TRIPLE_FAULT = 4
    UD = 5


class TraceKind(IntEnum):
    """Events of the shadow MMU (KVM's ``kvmmmu`` tracepoints; ``docs/machine.md`` §11)."""

    GET_PAGE = 1
    UNSYNC_PAGE = 2
    SYNC_PAGE = 3
    PREPARE_ZAP_PAGE = 4
    SET_SPTE = 5


@dataclass(frozen=True, slots=True)
class MmioExit:
    """A guest access reached a gpa that is in no memslot, or a write one in a read-only memslot: the device behind it, if any, is the caller's.

    Attributes
    ----------
    gpa : int
        The guest-physical address that the guest's tables lead to.

    """

    gpa: int

    def __repr__(self) -> str:
        """Show the address in hexadecimal."""
        return f"MmioExit(gpa={self.gpa:#x})"


@dataclass(frozen=True, slots=True)
class Memslot:
    """A range of guest-physical memory.

    Attributes
    ----------
    gpa : int
        First byte, page aligned.
    bytes : int
        Length, a positive multiple of 4096.
    read_only : bool
        Whether the guest may only read it (KVM: ``KVM_MEM_READONLY``): what it writes there is an MMIO exit, and its page tables
        there get no A and D bits (E107). The host writes it as any memory.

    Raises
    ------
    MemoryRangeError
        Misaligned, empty, negative, or above the 46-bit limit of this machine.

    """

    gpa: int
    bytes: int
    read_only: bool = False

    def __post_init__(self) -> None:
        """Refuse what no machine could hold."""
        for name, value in (("gpa", self.gpa), ("bytes", self.bytes)):
            if type(value) is not int:
                msg = f"memslot {name} must be an integer, not {value!r}"
                raise MemoryRangeError(msg)
            if value % PAGE_SIZE or value < 0:
                msg = f"memslot {name} must be a non-negative multiple of {PAGE_SIZE}, not {value:#x}"
                raise MemoryRangeError(msg)
        flag: object = self.read_only
        if type(flag) is not bool:
            msg = f"memslot read_only must be True or False, not {flag!r}"
            raise MemoryRangeError(msg)
        if self.bytes == 0:
            msg = f"memslot at gpa {self.gpa:#x} is empty"
            raise MemoryRangeError(msg)
        if self.gpa + self.bytes > MAX_GUEST_BYTES:
            msg = f"memslot {self.gpa:#x}+{self.bytes:#x} ends above {MAX_GUEST_BYTES:#x}"
            raise MemoryRangeError(msg)

    def __repr__(self) -> str:
        """Show both numbers in hexadecimal."""
        kind = ", read_only=True" if self.read_only else ""
        return f"Memslot(gpa={self.gpa:#x}, bytes={self.bytes:#x}{kind})"
