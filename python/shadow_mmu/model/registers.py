"""Control registers and the rules of writing them (``docs/machine.md`` §4), as functions of values.

A write gives a :class:`Written` (the registers after it and what it asks of the MMU) or ``None`` for #GP(0).
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from shadow_mmu.cpu import CpuModel

from .constants import (
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PDPTR_BITS,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_COMMON,
    CR4_LA57,
    CR4_PAE,
    CR4_PDPTR_BITS,
    CR4_PGE,
    CR4_PKE,
    CR4_ROLE_BITS,
    CR4_SMAP,
    CR4_SMEP,
    EFER_COMMON,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    REQ_TLB_FLUSH_CURRENT,
    REQ_TLB_FLUSH_GUEST,
)


class PagingMode(Enum):
    """How guest tables are walked (B.1): ``value`` is the number of levels, the PDPTRs of PAE counted."""

    NONE = 0
    BITS32 = 2
    PAE = 3
    LONG4 = 4
    LONG5 = 5


@dataclass(frozen=True, slots=True)
class Registers:
    """The registers that decide paging; the defaults are those of a booted 64-bit guest."""

    cr0: int = 0x80050033
    cr3: int = 0
    cr4: int = CR4_PAE
    efer: int = EFER_LMA | EFER_LME | EFER_NXE
    pkru: int = 0
    """Two bits for each protection key: access-disable and write-disable."""

    @classmethod
    def booted(cls, cpu: CpuModel) -> Self:
        """Return the registers of a booted 64-bit guest on this processor, of a PAE guest where there is no long mode."""
        default = cls()
        return cls(
            cr0=default.cr0 & ~(0 if cpu.wp else CR0_WP),
            efer=default.efer & ~(0 if cpu.nx else EFER_NXE) & ~(0 if cpu.long_mode else EFER_LME | EFER_LMA),
        )

    @property
    def has_keys(self) -> bool:
        """Whether protection keys are in force: CR4.PKE in long mode."""
        return bool(self.cr4 & CR4_PKE and self.efer & EFER_LMA)

    @property
    def mode(self) -> PagingMode:
        """The paging mode that these values select."""
        if not self.cr0 & CR0_PG:
            return PagingMode.NONE
        if self.efer & EFER_LMA:
            return PagingMode.LONG5 if self.cr4 & CR4_LA57 else PagingMode.LONG4
        return PagingMode.PAE if self.cr4 & CR4_PAE else PagingMode.BITS32


@dataclass(frozen=True, slots=True)
class Written:
    """A register write that happened."""

    registers: Registers
    reset_context: bool = False
    load_pdptrs: bool = False
    """PAE paging is on now, and this write loads the PDPTRs."""
    requests: int = 0


def set_cr0(old: Registers, value: int, cpu: CpuModel, *, host: bool) -> Written | None:
    """MOV to CR0; ``host``: the register now holds this. A processor without WP ignores that bit, as the 386 does."""
    paging, was_paging = bool(value & CR0_PG), bool(old.cr0 & CR0_PG)
    if value >> 32 or (paging and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return None
    if not host:
        if paging and not was_paging and old.efer & EFER_LME and not old.cr4 & CR4_PAE:
            return None
        if was_paging and not paging and old.efer & EFER_LMA:
            return None  # 64-bit code runs whenever LMA is set, and it may not clear PG
    new = _with_lma(replace(old, cr0=value & ~(0 if cpu.wp else CR0_WP) | CR0_ET))
    changed = old.cr0 ^ new.cr0
    return Written(
        new,
        reset_context=bool(changed & (CR0_PG | CR0_WP)) or new.mode is not old.mode,
        load_pdptrs=new.mode is PagingMode.PAE and bool(changed & CR0_PDPTR_BITS),
        requests=REQ_TLB_FLUSH_GUEST if was_paging and not paging else 0,
    )


def cr4_bits(cpu: CpuModel) -> int:
    """Return the CR4 bits that this processor has; another is #GP."""
    return (
        CR4_COMMON
        | (CR4_LA57 if cpu.la57 and cpu.long_mode else 0)
        | (CR4_SMEP if cpu.smep else 0)
        | (CR4_SMAP if cpu.smap else 0)
        | (CR4_PKE if cpu.pku else 0)
    )


def set_cr4(old: Registers, value: int, cpu: CpuModel, *, host: bool) -> Written | None:
    """MOV to CR4; ``host``: the register now holds this."""
    if value & ~cr4_bits(cpu):
        return None
    changed = old.cr4 ^ value
    if not host and old.efer & EFER_LMA and (not value & CR4_PAE or changed & CR4_LA57):
        return None
    requests = 0
    if changed & CR4_PGE:
        requests = REQ_TLB_FLUSH_GUEST
    elif changed & CR4_PAE or changed & value & CR4_SMEP:
        requests = REQ_TLB_FLUSH_CURRENT
    new = replace(old, cr4=value)
    new = _with_lma(new) if host else new
    return Written(
        new,
        reset_context=bool(changed & CR4_ROLE_BITS),
        load_pdptrs=new.mode is PagingMode.PAE and bool(changed & CR4_PDPTR_BITS),
        requests=requests,
    )


def set_efer(old: Registers, value: int, cpu: CpuModel, *, host: bool) -> Written | None:
    """WRMSR to EFER; ``host``: the register now holds this."""
    allowed = EFER_COMMON | (EFER_NXE if cpu.nx else 0) | (EFER_LME | EFER_LMA if cpu.long_mode else 0)
    if value & ~allowed or (not host and old.cr0 & CR0_PG and (old.efer ^ value) & EFER_LME):
        return None
    new = replace(old, efer=value & ~EFER_LMA | old.efer & EFER_LMA)
    new = _with_lma(new) if host else new
    changed = old.efer ^ new.efer
    return Written(
        new,
        reset_context=bool(changed & (EFER_NXE | EFER_LMA)),
        load_pdptrs=new.mode is PagingMode.PAE and new.mode is not old.mode,
    )


def _with_lma(registers: Registers) -> Registers:
    """Set or clear EFER.LMA as the processor does: long mode is active under LME with paging and PAE on."""
    active = registers.cr0 & CR0_PG and registers.efer & EFER_LME and registers.cr4 & CR4_PAE
    return replace(registers, efer=registers.efer | EFER_LMA if active else registers.efer & ~EFER_LMA)


def cr3_is_legal(registers: Registers, value: int, maxphyaddr: int) -> bool:
    """Whether CR3 may hold the value: in long mode no bit at or above MAXPHYADDR is set (B.3)."""
    return registers.mode.value < PagingMode.LONG4.value or not value >> maxphyaddr
