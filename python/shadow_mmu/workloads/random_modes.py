"""How a random stream takes a vCPU from one paging mode to another: the register writes, and a root to go to."""

from dataclasses import dataclass
from random import Random
from typing import Final

from shadow_mmu import ops as op
from shadow_mmu.ops import Op
from shadow_mmu.workloads.world import DATA_GFNS, A, P, Paging, U, W, World

_PG: Final = 1 << 31
_PSE_PAE_LA57: Final = 1 << 4 | 1 << 5 | 1 << 12
_NXE: Final = 1 << 11


@dataclass(frozen=True, slots=True)
class Registers:
    """What a vCPU of a stream has besides the bits that select its mode."""

    cr0: int
    cr4: int
    efer: int

    def cr4_in(self, paging: Paging) -> int:
        """Return CR4 in a mode."""
        return self.cr4 & ~_PSE_PAE_LA57 | paging.cr4 & _PSE_PAE_LA57

    def efer_in(self, paging: Paging) -> int:
        """Return EFER in a mode."""
        return self.efer & _NXE | paging.efer & ~_NXE


def enter(rng: Random, registers: Registers, paging: Paging, root: int, vcpu: int) -> list[Op]:
    """Take a vCPU to a mode: as a host sets registers, or with paging off between and turned on by the guest itself."""
    cr4, efer = registers.cr4_in(paging), registers.efer_in(paging)
    if rng.random() < 0.5:
        return [
            op.write_cr4(cr4, vcpu=vcpu, host=True),
            op.write_efer(efer, vcpu=vcpu, host=True),
            op.write_cr3(root, vcpu=vcpu),
        ]
    return [
        # Long mode is left by a reset only.
        op.write_cr0(registers.cr0 & ~_PG, vcpu=vcpu, host=True),
        op.write_cr4(cr4, vcpu=vcpu),
        op.write_efer(efer, vcpu=vcpu),
        op.write_cr3(root, vcpu=vcpu),
        op.write_cr0(registers.cr0, vcpu=vcpu),
    ]


def root_as_of(rng: Random, world: World, paging: Paging, vcpu: int) -> tuple[list[Op], int]:
    """Build a root of another mode over the level-2 tables of a world, in frames that were data.

    Parameters
    ----------
    rng : Random
    world : World
    paging : Paging
        The other mode; its entries have the width of the world's.
    vcpu : int
        On which the host's writes run.

    Returns
    -------
    list of Op
        What writes the tables.
    int
        The gpa of the root.

    """
    level, frame = 3, DATA_GFNS[1]
    pointers = paging.has_pdptrs
    written = [
        (frame << 12 | 8 * index, rng.choice(world.tables[2]) << 12 | (P if pointers else P | W | U | A))
        for index in (range(3) if pointers else paging.below)
    ]
    while level < paging.levels:
        level, below, frame = level + 1, frame, frame + 1
        indices = paging.top if level == paging.levels else paging.below
        written += [(frame << 12 | 8 * index, below << 12 | P | W | U | A) for index in indices]
    return [op.host_store(gpa, entry, vcpu=vcpu) for gpa, entry in written], frame << 12
