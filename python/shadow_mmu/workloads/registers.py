"""The control registers of a random stream's vCPUs, as it believes they are, and writes that change them."""

from random import Random
from typing import Final

from shadow_mmu import ops as op
from shadow_mmu.ops import Op
from shadow_mmu.workloads.world import MachineConfig, World

_CR0: Final = 0x80050033
_CR0_WP: Final = 1 << 16
_CR4_PSE, _CR4_PGE, _CR4_SMEP, _CR4_SMAP, _CR4_PKE = 1 << 4, 1 << 7, 1 << 20, 1 << 21, 1 << 22
_EFER_NXE: Final = 1 << 11


class DrawnRegisters:
    """CR0, CR4 and EFER of each vCPU, which are what its world needs and what was toggled since.

    Parameters
    ----------
    rng : Random
    world : World
    config : MachineConfig

    """

    __slots__ = ("config", "cr0", "cr4", "efer", "rng", "world")

    def __init__(self, rng: Random, world: World, config: MachineConfig) -> None:
        self.rng, self.world, self.config = rng, world, config
        self.cr0 = [_CR0] * config.vcpus
        self.cr4 = [world.paging.cr4] * config.vcpus
        self.efer = [world.paging.efer & ~(0 if config.cpu.nx else _EFER_NXE)] * config.vcpus

    def keys(self, vcpu: int) -> list[Op]:
        """Write PKRU: rights of the keys that entries have, or what is refused; now and then toggle CR4.PKE."""
        rng = self.rng
        if not self.config.cpu.pku:
            return [op.write_pkru(0, vcpu=vcpu, host=rng.random() < 0.5)]
        if rng.random() < 0.2:
            self.cr4[vcpu] ^= _CR4_PKE
            return [op.write_cr4(self.cr4[vcpu], vcpu=vcpu, host=rng.random() < 0.5)]
        pkru = sum(rng.choice((0, 0, 1, 2, 3)) << 2 * key for key in (0, 1, 2, 15))
        return [op.write_pkru(pkru | (rng.random() < 0.03) << 32, vcpu=vcpu, host=rng.random() < 0.2)]

    def toggle(self, vcpu: int) -> list[Op]:
        """Toggle WP, SMEP, SMAP, NXE, PGE, PSE."""
        rng, world = self.rng, self.world
        which = rng.randrange(3)
        if which == 0:
            self.cr0[vcpu] ^= _CR0_WP
            return [op.write_cr0(self.cr0[vcpu], vcpu=vcpu, host=rng.random() < 0.5)]
        if which == 1:
            # CR4.PSE is not in the role of a page, so that a toggle under 32-bit paging would not reach large ones (C.1).
            others = () if world.paging.name == "32-bit" else (_CR4_PSE,)
            self.cr4[vcpu] ^= rng.choice((_CR4_SMEP, _CR4_SMAP, _CR4_PGE, _CR4_SMEP | _CR4_SMAP, *others))
            return [op.write_cr4(self.cr4[vcpu], vcpu=vcpu, host=rng.random() < 0.5)]
        self.efer[vcpu] ^= _EFER_NXE
        return [op.write_efer(self.efer[vcpu], vcpu=vcpu, host=rng.random() < 0.5)]
