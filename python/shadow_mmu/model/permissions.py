"""What an access may do: the reserved bits of an entry (B.4) and the permission check (B.5).

The MMU *context* is what of the registers these depend on; an :class:`Access` is what of the instruction they depend on.
"""

from dataclasses import dataclass
from typing import NamedTuple

from shadow_mmu.cpu import CpuModel

from .constants import (
    ACC_U,
    ACC_W,
    ACC_X,
    CR0_WP,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_NXE,
    FETCH,
    FLAG_AC,
    FLAG_IMPLICIT,
    FLAG_USER,
    GPTE_D,
    GPTE_NX,
    GPTE_PS,
    GPTE_U,
    GPTE_W,
    KEY_MASK,
    KEY_SHIFT,
    PF_F,
    PF_U,
    PF_W,
    STORE,
    WRITE,
)
from .registers import PagingMode, Registers


@dataclass(frozen=True, slots=True)
class Context:
    """The mode in which a vCPU's guest tables are walked (``cpu_role``, A.8)."""

    mode: PagingMode
    nx: bool
    wp: bool
    smep: bool
    smap: bool
    keyed: bool
    """Bits 62:59 of a leaf are its protection key, whatever CR4.PKE is now."""
    keys: bool
    """Protection keys are in force."""
    pkru: int
    """PKRU if keys are in force, else 0."""
    reserved: tuple[tuple[int, int], ...]
    """Reserved bits by level (index) and by bit 7 of the entry."""
    largest: int
    """Highest level whose entries map pages if bit 7 is set; 1 if none does (F-30)."""

    @property
    def four_byte(self) -> bool:
        """Whether entries have 4 bytes and tables 1,024 of them (32-bit paging)."""
        return self.mode is PagingMode.BITS32

    @property
    def top(self) -> int:
        """Level of the first table that a walk reads: under PAE the one that a cached PDPTR leads to."""
        return 2 if self.mode is PagingMode.PAE else self.mode.value

    @property
    def long(self) -> bool:
        """Whether this is 4- or 5-level paging, whose root is a shadow page."""
        return self.mode.value >= PagingMode.LONG4.value

    @property
    def address_bits(self) -> int:
        """Width of linear addresses: 32, 48 or 57 bits (B.1)."""
        return {PagingMode.LONG4: 48, PagingMode.LONG5: 57}.get(self.mode, 32)


class Access(NamedTuple):
    """One guest access, as the checks see it."""

    write: bool
    fetch: bool
    user: bool
    override: bool
    """SMAP does not apply: EFLAGS.AC is set and the access is explicit."""


def make_context(registers: Registers, cpu: CpuModel) -> Context:
    """Return the context of these registers of this processor."""
    mode = registers.mode
    nx = bool(registers.efer & EFER_NXE)
    pse = bool(registers.cr4 & CR4_PSE)
    paging = mode is not PagingMode.NONE
    return Context(
        mode=mode,
        nx=nx,
        # Without paging nothing is refused: the hypervisor keeps SMEP and SMAP from the processor (E103).
        wp=paging and bool(registers.cr0 & CR0_WP),
        smep=paging and bool(registers.cr4 & CR4_SMEP),
        smap=paging and bool(registers.cr4 & CR4_SMAP),
        keyed=cpu.pku and mode.value >= PagingMode.LONG4.value,
        keys=registers.has_keys,
        pkru=registers.pkru if registers.has_keys else 0,
        reserved=_reserved_bits(mode, cpu, nx=nx, pse=pse),
        largest={PagingMode.NONE: 1, PagingMode.BITS32: 2 if pse else 1, PagingMode.PAE: 2}.get(mode, 3),
    )


def _reserved_bits(mode: PagingMode, cpu: CpuModel, *, nx: bool, pse: bool) -> tuple[tuple[int, int], ...]:
    """Return the table of B.4 for one mode."""
    if mode is PagingMode.BITS32:
        # PSE-36 is of 36 bits, whatever MAXPHYADDR is; without PSE bit 7 means nothing.
        return (0, 0), (0, 0), (0, _bits(21, 17 if cpu.pse36 else 13) if pse else 0)
    high = _bits(62 if mode is PagingMode.PAE else 51, cpu.maxphyaddr) | (0 if nx else GPTE_NX)
    two_levels = (0, 0), (high, high), (high, high | _bits(20, 13))
    if mode is PagingMode.PAE:
        return two_levels
    upper = (high, high | GPTE_PS)
    return *two_levels, (high, high | (_bits(29, 13) if cpu.gib_pages else GPTE_PS)), upper, upper


def _bits(high: int, low: int) -> int:
    """Return a mask of the bits from ``high`` down to ``low``."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


def pdptr_is_reserved(pdptr: int, maxphyaddr: int) -> bool:
    """Whether a present PDPTR sets a reserved bit: 63, those above MAXPHYADDR, 8:5, 2:1 (B.3)."""
    return bool(pdptr & (_bits(63, maxphyaddr) | _bits(8, 5) | _bits(2, 1)))


def make_access(kind: int, flags: int) -> Access:
    """Return the access that an operation of this kind makes."""
    return Access(
        write=kind in (WRITE, STORE),
        fetch=kind == FETCH,
        user=bool(flags & FLAG_USER),
        override=bool(flags & FLAG_AC) and not flags & FLAG_IMPLICIT,
    )


def access_code(access: Access) -> int:
    """Return the error-code bits that come from the access itself: W, U and F."""
    return (PF_W if access.write else 0) | (PF_U if access.user else 0) | (PF_F if access.fetch else 0)


def has_reserved_bits(context: Context, gpte: int, level: int) -> bool:
    """Whether an entry of this level sets a reserved bit (B.4)."""
    return bool(gpte & context.reserved[level][1 if gpte & GPTE_PS else 0])


def gpte_access(gpte: int) -> int:
    """Return the ACC bits that one entry allows by itself."""
    return (ACC_W if gpte & GPTE_W else 0) | (ACC_U if gpte & GPTE_U else 0) | (0 if gpte & GPTE_NX else ACC_X)


def key_of(context: Context, gpte: int) -> int:
    """Return the protection key of a leaf; 0 where there are none."""
    return gpte >> KEY_SHIFT & KEY_MASK if context.keyed else 0


def key_denies(context: Context, acc: int, key: int, access: Access) -> bool:
    """Whether PKRU denies the access by the key of its page: data accesses to user pages only (E111)."""
    if not context.pkru or access.fetch or not acc & ACC_U:
        return False
    bits = context.pkru >> 2 * key
    return bool(bits & 1) or (access.write and bool(bits & 2) and (access.user or context.wp))


def leaf_access(role_access: int, gpte: int) -> int:
    """Return the rights of a leaf in a table that is reached with ``role_access``.

    W is dropped while D is clear, so that the first write faults and D can be set (B.2 step 9, C.5).
    """
    access = role_access & gpte_access(gpte)
    return access if gpte & GPTE_D else access & ~ACC_W


def is_denied(context: Context, acc: int, access: Access) -> bool:
    """Whether the accumulated rights ``acc`` refuse the access (B.5); the key of the page is a matter of its own."""
    if access.write and not acc & ACC_W and (access.user or context.wp):
        return True
    if access.fetch and not acc & ACC_X and context.nx:
        return True
    if access.user:
        return not acc & ACC_U
    if acc & ACC_U:
        if access.fetch:
            return context.smep
        return context.smap and not access.override
    return False
