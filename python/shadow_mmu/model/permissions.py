"""What an access may do: the reserved bits of an entry (B.4) and the permission check (B.5).

The MMU *context* is what of the registers these depend on; an :class:`Access` is what of the instruction they depend on.
"""

from dataclasses import dataclass
from typing import NamedTuple

from .constants import (
    ACC_U,
    ACC_W,
    ACC_X,
    CR0_WP,
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
    PF_F,
    PF_U,
    PF_W,
    STORE,
    WRITE,
)
from .registers import Registers


@dataclass(frozen=True, slots=True)
class Context:
    """The mode in which a vCPU's guest tables are walked (``cpu_role``, A.8)."""

    levels: int
    nx: bool
    wp: bool
    smep: bool
    smap: bool
    reserved: tuple[tuple[int, int], ...]
    """Reserved bits by level (index) and by bit 7 of the entry."""


class Access(NamedTuple):
    """One guest access, as the checks see it."""

    write: bool
    fetch: bool
    user: bool
    override: bool
    """SMAP does not apply: EFLAGS.AC is set and the access is explicit."""


def make_context(registers: Registers, maxphyaddr: int) -> Context:
    """Return the context of these registers; ``levels`` is 0 with paging off."""
    nx = bool(registers.efer & EFER_NXE)
    high = ((1 << 52) - 1) & ~((1 << maxphyaddr) - 1)
    high |= 0 if nx else GPTE_NX
    large_2m, large_1g = high | ((1 << 21) - (1 << 13)), high | ((1 << 30) - (1 << 13))
    upper = (high, high | GPTE_PS)
    return Context(
        levels=registers.levels,
        nx=nx,
        wp=bool(registers.cr0 & CR0_WP),
        smep=bool(registers.cr4 & CR4_SMEP),
        smap=bool(registers.cr4 & CR4_SMAP),
        reserved=((0, 0), (high, high), (high, large_2m), (high, large_1g), upper, upper),
    )


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


def leaf_access(role_access: int, gpte: int) -> int:
    """Return the rights of a leaf in a table that is reached with ``role_access``.

    W is dropped while D is clear, so that the first write faults and D can be set (B.2 step 9, C.5).
    """
    access = role_access & gpte_access(gpte)
    return access if gpte & GPTE_D else access & ~ACC_W


def is_denied(context: Context, acc: int, access: Access) -> bool:
    """Whether the accumulated rights ``acc`` refuse the access (B.5)."""
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
