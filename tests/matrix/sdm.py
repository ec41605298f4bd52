"""An oracle of every paging mode written from the tables of the SDM (volume 3A, chapter 4) and nothing else.

It works on arrays: one element is one translation. No word of it is shared with the core or the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

# Table 4-15 to 4-20: bits of an entry.
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, PAGE_SIZE = (1 << bit for bit in (0, 1, 2, 5, 6, 7))
NO_EXECUTE = 1 << 63
# Section 4.7: bits of a page-fault error code.
FAULT_PROTECTION, FAULT_WRITE, FAULT_USER, FAULT_RESERVED, FAULT_FETCH, FAULT_KEY = 1, 2, 4, 8, 16, 32
KEY_SHIFT = 59


@dataclass(frozen=True, slots=True)
class Paging:
    """One paging mode: figures 4-2 to 4-11.

    ``levels`` counts the tables that entries with rights are in; PAE's page-directory pointers are registers.
    """

    name: str
    levels: int
    entry_bytes: int
    largest: int
    """Highest level whose entries map pages if bit 7 is set (for 32-bit paging: if CR4.PSE = 1)."""
    maxphyaddr: int = 46

    @property
    def index_bits(self) -> int:
        """How many bits of a linear address index one table."""
        return 9 if self.entry_bytes == 8 else 10

    def span(self, level: int) -> int:
        """Return how many bytes one entry of a level covers."""
        return 1 << 12 + self.index_bits * (level - 1)


PAGINGS = {
    one.name: one
    for one in (
        Paging("4-level", 4, 8, 3),
        Paging("5-level", 5, 8, 3),
        Paging("PAE", 2, 8, 2),
        # With 36 bits PSE-36 is what the SDM says and what KVM does (B.4).
        Paging("32-bit", 2, 4, 2, 36),
        Paging("32-bit without PSE", 2, 4, 1, 36),
    )
}


@dataclass(frozen=True, slots=True)
class Registers:
    """The control bits that the rules of section 4.6 read."""

    wp: bool
    nxe: bool
    smep: bool
    smap: bool
    pkru: int | None = None
    """PKRU; ``None`` if CR4.PKE = 0."""

    @staticmethod
    def all() -> "list[Registers]":
        """Return the 16 settings without protection keys."""
        return [Registers(*bits) for bits in product((False, True), repeat=4)]


@dataclass(frozen=True, slots=True)
class Access:
    """One kind of access: what, by whom, and whether EFLAGS.AC lifts SMAP (not for implicit supervisor accesses)."""

    kind: str
    user: bool
    ac: bool
    implicit: bool

    @staticmethod
    def all() -> "list[Access]":
        """Return the 18 kinds, so ordered that an access which SMAP denies comes before one that it permits."""
        who = [(True, False, False), (True, True, False), (False, False, False), (False, False, True)]
        who += [(False, True, True), (False, True, False)]
        return [Access(kind, *one) for one in who for kind in ("read", "write", "fetch")]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of each translation: ``fault`` or ``gpa``; the level of the entry that mapped it (0 for a fault)."""

    fault: Mask
    error: npt.NDArray[np.uint32]
    gpa: Words
    leaf: npt.NDArray[np.uint8]


def reserved(paging: Paging, level: int, registers: Registers) -> tuple[int, int]:
    """Return the reserved bits of an entry at a level: those of a table's or 4 KiB page's, those of a large page's."""
    if paging.entry_bytes == 4:
        # Table 4-4: bits 21:17 of a 4 MiB page's entry, of which 16:13 are address bits 35:32.
        return 0, (1 << 22) - (1 << 17) if level == 2 and paging.largest == 2 else 0
    # Table 4-10 and 4-11: PAE reserves up to bit 62; 4.5.4: the others up to 51.
    high = (1 << (63 if paging.name == "PAE" else 52)) - (1 << paging.maxphyaddr)
    if not registers.nxe:
        high |= NO_EXECUTE  # 4.1.4: the bit is reserved if IA32_EFER.NXE = 0
    if level >= 4:
        return high | PAGE_SIZE, high | PAGE_SIZE
    large = {1: 0, 2: (1 << 21) - (1 << 13), 3: (1 << 30) - (1 << 13)}[level]
    return high, high | large


def judge(paging: Paging, entries: Sequence[Words], linear: Words, access: Access, registers: Registers) -> Verdict:
    """Translate ``linear`` through ``entries``: entry arrays from level 1 (``entries[0]``) to the root's level."""
    count = len(linear)
    going = np.ones(count, bool)
    write = executable = user_page = np.ones(count, bool)
    fault, error = np.zeros(count, bool), np.zeros(count, np.uint32)
    gpa, leaf = np.zeros(count, np.uint64), np.zeros(count, np.uint8)
    # 4.7: W/R and U/S tell the access; I/D only if SMEP or (PAE and NXE).
    code = FAULT_WRITE * (access.kind == "write") | FAULT_USER * access.user
    no_execute = registers.nxe and paging.entry_bytes == 8
    code |= FAULT_FETCH * (access.kind == "fetch" and (no_execute or registers.smep))

    def stop(where: Mask, bits: int) -> None:
        nonlocal going
        fault[where], error[where] = True, code | bits
        going = going & ~where

    for level in range(len(entries), 0, -1):
        entry = entries[level - 1]
        stop(going & (entry & np.uint64(PRESENT) == 0), 0)
        sized = (entry & np.uint64(PAGE_SIZE) != 0) & (1 < level <= paging.largest)
        small_bits, large_bits = (np.uint64(mask) for mask in reserved(paging, level, registers))
        stop(going & (entry & np.where(sized, large_bits, small_bits) != 0), FAULT_PROTECTION | FAULT_RESERVED)
        # 4.6.1: the rights of a translation are those that every entry on the way gives.
        write = write & (entry & np.uint64(WRITABLE) != 0)
        user_page = user_page & (entry & np.uint64(USER) != 0)
        executable = executable & (entry & np.uint64(NO_EXECUTE) == 0)  # no 4-byte entry has it
        ends = going & (sized | (level == 1))
        if registers.pkru is not None:
            stop(ends & _denied_by_key(access, registers, user_page, entry), FAULT_PROTECTION | FAULT_KEY)
            ends = ends & going
        stop(ends & ~_permitted(access, registers, write, user_page, executable), FAULT_PROTECTION)
        ends = ends & going
        offset = np.uint64(paging.span(level) - 1)
        frame = entry & np.uint64((1 << paging.maxphyaddr) - 1) & ~np.uint64(0xFFF) & ~offset
        gpa[ends] = (frame | linear & offset)[ends]
        leaf[ends] = level
        going = going & ~ends
    assert not going.any()
    return Verdict(fault, error, gpa, leaf)


def _denied_by_key(access: Access, registers: Registers, user_page: Mask, entry: Words) -> Mask:
    """Apply section 4.6.2: the key of the leaf, two bits of PKRU; data accesses to user-mode addresses only."""
    assert registers.pkru is not None
    bits = np.uint64(registers.pkru) >> (entry >> np.uint64(KEY_SHIFT) & np.uint64(15)) * np.uint64(2)
    access_disable, write_disable = (bits & np.uint64(1)) != 0, (bits & np.uint64(2)) != 0
    if access.kind == "fetch":
        return np.zeros_like(user_page)
    applies = access.kind == "write" and (access.user or registers.wp)
    denied: Mask = user_page & (access_disable | (write_disable & applies))
    return denied


def _permitted(access: Access, registers: Registers, write: Mask, user_page: Mask, executable: Mask) -> Mask:
    """Apply section 4.6.1 to accumulated rights."""
    if access.kind == "fetch":
        allowed = executable | (not registers.nxe)
        if access.user:
            return allowed & user_page
        return allowed & ~(user_page & registers.smep)
    if access.user:
        return user_page & (write if access.kind == "write" else np.ones_like(write))
    # Supervisor-mode data access: SMAP forbids user pages unless the access is explicit and EFLAGS.AC is set.
    lifted = access.ac and not access.implicit
    allowed = ~(user_page & (registers.smap and not lifted))
    return allowed & write if access.kind == "write" and registers.wp else allowed
