"""Control registers and the rules of writing them (``docs/machine.md`` §4), as functions of values.

A write gives a :class:`Written` (the registers after it and what it asks of the MMU) or ``None`` for #GP(0).
"""

from dataclasses import dataclass, replace
from typing import Final

from shadow_mmu.errors import UnsupportedModeError

from .constants import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_ALLOWED,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_ROLE_BITS,
    CR4_SMEP,
    EFER_ALLOWED,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)


@dataclass(frozen=True, slots=True)
class Registers:
    """The four registers that decide paging; the defaults are those of a booted 64-bit guest."""

    cr0: int = 0x80050033
    cr3: int = 0
    cr4: int = CR4_PAE
    efer: int = EFER_LMA | EFER_LME | EFER_NXE

    @property
    def levels(self) -> int:
        """Levels of the guest's tables: 4 or 5, 0 with paging off."""
        if not (self.cr0 & CR0_PG and self.efer & EFER_LMA):
            return 0
        return 5 if self.cr4 & CR4_LA57 else 4


@dataclass(frozen=True, slots=True)
class Written:
    """A register write that happened."""

    registers: Registers
    reset_context: bool = False
    requests: int = 0


_NO_32_BIT: Final = "CR0.PG=1 with EFER.LME=0 selects 32-bit or PAE paging: expected 4- or 5-level paging"


def set_cr0(old: Registers, value: int, *, host: bool) -> Written | None:
    """MOV to CR0; ``host``: the register now holds this.

    Raises
    ------
    UnsupportedModeError
        The value enters 32-bit or PAE paging.

    """
    paging, was_paging = bool(value & CR0_PG), bool(old.cr0 & CR0_PG)
    if value >> 32 or (paging and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return None
    if paging and not old.efer & EFER_LME:
        raise UnsupportedModeError(_NO_32_BIT)
    if not host:
        if paging and not was_paging and not old.cr4 & CR4_PAE:
            return None
        if was_paging and not paging:
            return None  # 64-bit code runs whenever LMA is set, and it may not clear PG
    value |= CR0_ET
    efer = old.efer | EFER_LMA if paging else old.efer & ~EFER_LMA
    changed = old.cr0 ^ value
    return Written(replace(old, cr0=value, efer=efer), reset_context=bool(changed & (CR0_PG | CR0_WP)))


def set_cr4(old: Registers, value: int, *, host: bool) -> Written | None:
    """MOV to CR4; ``host``: the register now holds this."""
    if value & ~CR4_ALLOWED:
        return None
    changed = old.cr4 ^ value
    if old.efer & EFER_LMA and (not value & CR4_PAE or (changed & CR4_LA57 and not host)):
        return None
    requests = 0
    if changed & CR4_PGE:
        requests = REQ_TLB_FLUSH_GUEST
    elif changed & CR4_PAE or changed & value & CR4_SMEP:
        requests = REQ_TLB_FLUSH_CURRENT
    return Written(replace(old, cr4=value), reset_context=bool(changed & CR4_ROLE_BITS), requests=requests)


def set_efer(old: Registers, value: int, *, host: bool) -> Written | None:
    """WRMSR to EFER; ``host``: the register now holds this.

    Raises
    ------
    UnsupportedModeError
        The host clears LME under paging.

    """
    if value & ~EFER_ALLOWED:
        return None
    paging = old.cr0 & CR0_PG
    if host:
        if paging and not value & EFER_LME:
            raise UnsupportedModeError(_NO_32_BIT)
        lma = EFER_LMA if paging else 0
    else:
        if paging and (old.efer ^ value) & EFER_LME:
            return None
        lma = old.efer & EFER_LMA
    value = value & ~EFER_LMA | lma
    return Written(replace(old, efer=value), reset_context=bool((old.efer ^ value) & (EFER_NXE | EFER_LMA)))


def cr3_is_legal(value: int, maxphyaddr: int) -> bool:
    """Whether a CR3 value has no bit at or above MAXPHYADDR."""
    return not value >> maxphyaddr
