"""The CR3 pairs of page-table isolation: two top tables beside each other, one for the kernel, one for user mode.

Linux allocates both as 8 KiB: bit 12 of CR3 tells the user half. Both have the same user addresses below the same tables (the
kernel's copy with NX set), and the user half has next to nothing of the kernel's addresses. That is how a pair is recognised.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from shadow_mmu.model.constants import ENTRIES, GPTE_P, PAGE_SHIFT, PFN_MASK

from .physical import PhysicalMemory

__all__ = ["Root", "find_roots", "other_half"]

_USER_HALF: Final = 1 << PAGE_SHIFT
_MIDDLE: Final = ENTRIES // 2


@dataclass(frozen=True, slots=True)
class Root:
    """A top table that the dump knows of.

    Attributes
    ----------
    cr3 : int
        Of a vCPU as it was in the register; of a pair's other half the bare address.
    half : {"kernel", "user"} or None
        Which half of a pair it is; ``None`` if it is in none.
    pair : int or None
        Address of the pair's other table.
    cpus : tuple of int
        The vCPUs that had it in CR3 when the dump was taken.

    """

    cr3: int
    half: Literal["kernel", "user"] | None
    pair: int | None
    cpus: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        pair = None if self.pair is None else f"{self.pair:#x}"
        return {"cr3": f"{self.cr3:#x}", "half": self.half, "pair": pair, "cpus": list(self.cpus)}


def other_half(memory: PhysicalMemory, cr3: int) -> Root | None:
    """Return the other table of the pair that ``cr3`` is in; ``None`` if it is in none.

    Raises
    ------
    DumpError
        The file cannot be read.

    """
    here = cr3 & PFN_MASK
    other = here ^ _USER_HALF
    kernel, user = min(here, other), max(here, other)
    words, there = memory.tables(np.array([kernel >> PAGE_SHIFT, user >> PAGE_SHIFT], np.uint64))
    if not there.all():
        return None
    present = words & np.uint64(GPTE_P) != 0
    target = np.where(present, words & np.uint64(PFN_MASK), np.uint64(0))
    of_kernel, of_user = present[:, _MIDDLE:]
    same_users = bool(
        (present[0, :_MIDDLE] == present[1, :_MIDDLE]).all() and (target[0, :_MIDDLE] == target[1, :_MIDDLE]).all()
    )
    # The way into the kernel is mapped, but less than the kernel has.
    way_in = bool(of_user.any() and not (of_user & ~of_kernel).any() and of_user.sum() < of_kernel.sum())
    if not (same_users and way_in):
        return None
    return Root(other, "user" if other == user else "kernel", here, ())


def find_roots(memory: PhysicalMemory, cr3s: list[int]) -> tuple[Root, ...]:
    """Return the roots that vCPUs have in CR3, each followed by the other half of its pair.

    Parameters
    ----------
    memory : PhysicalMemory
    cr3s : list of int
        By vCPU.

    Raises
    ------
    DumpError
        The file cannot be read.

    """
    roots: dict[int, Root] = {}
    for cr3 in cr3s:
        address = cr3 & PFN_MASK
        if address in roots and roots[address].cpus:
            continue
        cpus = tuple(cpu for cpu, value in enumerate(cr3s) if value & PFN_MASK == address)
        other = other_half(memory, cr3)
        half: Literal["kernel", "user"] | None = None
        if other is not None:
            half = "kernel" if other.half == "user" else "user"
        roots[address] = Root(cr3, half, None if other is None else other.cr3, cpus)
        if other is not None:
            roots.setdefault(other.cr3, other)
    return tuple(roots.values())
