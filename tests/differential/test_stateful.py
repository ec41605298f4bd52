"""Hypothesis drives core and model with the same operations, and compares everything after each (issue: item 5)."""

from random import Random
from typing import Final

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shadow_mmu import ops
from shadow_mmu.differential import ModelSubject, NativeSubject
from shadow_mmu.model import LegalTranslations, Outcome
from shadow_mmu.ops import Op
from shadow_mmu.types import AccessKind
from shadow_mmu.workloads.world import DATA_GFNS, OUTSIDE, PAGINGS, MachineConfig, World, random_slots

VCPUS: Final = 2
DIRECT: Final = ["locked,mmu=tdp", "seed,mmu=tdp", "lru:3,mmu=tdp"]
CACHING_NARROW: Final = ["seed,pae_roots=cached", "lru:1,pae_roots=cached", "lru:3,pae_roots=cached"]
vcpus = st.integers(0, VCPUS - 1)
kinds: st.SearchStrategy[AccessKind] = st.sampled_from(["read", "write", "fetch"])
choices = st.integers(0, 7)
places = st.tuples(st.integers(1, 5), choices, st.integers(0, 3))
bits = st.sampled_from([0x67, 0x27, 0x07, 0x25, 0x23, 0x63, 0x65, 0x66, 1 << 63 | 0x67, 0x1E7, 0xE7, 1 << 50 | 0x67, 0])


class CoreAndModel(RuleBasedStateMachine):
    """Two vCPUs, table edits with and without INVLPG, aliases, CR3 switches, page sizes, register toggles."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Op] = []
        self.invlpg_due: list[int] = []

    @initialize(
        policy=st.sampled_from(["locked", "seed", "lru:0", "lru:1", "lru:3", *CACHING_NARROW, *DIRECT]),
        paging=st.sampled_from(sorted(PAGINGS)),
        tlb=st.sampled_from([0, 1, 24]),
        seed=st.integers(0, 1000),
        memory=st.integers(0, 100),
    )
    def boot(self, policy: str, paging: str, tlb: int, seed: int, memory: int) -> None:
        slots = random_slots(Random(memory))  # noqa: S311  reproducible
        config = MachineConfig(policy, VCPUS, tlb, slots=slots)
        self.core, self.model = NativeSubject(config), ModelSubject(config)
        self.oracle = LegalTranslations(config.slots, VCPUS, config.cpu, policy=policy)
        self.world = World(paging)
        setup, pages = self.world.setup(Random(seed))  # noqa: S311  reproducible
        self.pages = np.array(pages, "<u8")
        for op in setup:
            self.both(op)
        for vcpu in range(VCPUS):
            self.both(ops.write_cr4(self.world.paging.cr4, vcpu=vcpu, host=True))
            self.both(ops.write_efer(self.world.paging.efer, vcpu=vcpu, host=True))
            self.both(ops.write_cr3(self.world.tables[self.world.levels][vcpu] << 12, vcpu=vcpu))
        self.gvas = [self.world.gva(Random(number)) for number in range(8)]  # noqa: S311  reproducible
        self.cr4 = [self.world.paging.cr4] * VCPUS

    def both(self, op: Op) -> None:
        """Run one operation on both machines; the outcomes must be equal, and legal by D.5."""
        self.done.append(op)
        core, model = self.core.execute(op, self.pages), self.model.execute(op, self.pages)
        assert core == model, op
        if not isinstance(core, str):
            verdict = self.oracle.judge(op, Outcome(*core))
            assert verdict is None, (op, verdict)
            self.oracle.observe(op, Outcome(*core), self.pages)

    @rule(vcpu=vcpus, gva=choices, kind=kinds, user=st.booleans(), ac=st.booleans())
    def access(self, vcpu: int, gva: int, kind: AccessKind, *, user: bool, ac: bool) -> None:
        self.both(ops.access(self.gvas[gva] + 8 * gva, kind, vcpu=vcpu, user=user, ac=ac))

    @rule(vcpu=vcpus, kind=kinds, flags=st.integers(0, 7), offset=st.sampled_from([0, 0xFFF, 1 << 47, 1 << 63]))
    def look(self, vcpu: int, kind: AccessKind, flags: int, offset: int) -> None:
        gvas = [gva ^ offset for gva in self.gvas]
        user, ac, implicit = (bool(flags >> bit & 1) for bit in range(3))
        core = self.core.vm.vcpus[vcpu].translate_many(gvas, kind, user=user, ac=ac, implicit=implicit)
        model = self.model.machine.translate_many(vcpu, gvas, ops.access(0, kind).kind, flags)
        assert list(zip(core.gpa.tolist(), core.error.tolist(), strict=True)) == model

    @rule(vcpu=vcpus, gva=choices, size=st.sampled_from([1, 2, 4, 8]), place=st.sampled_from([0, 1, 8, 16, 4088]))
    def load(self, vcpu: int, gva: int, size: int, place: int) -> None:
        self.both(ops.load(self.gvas[gva] + place, size, vcpu=vcpu, ac=True))

    def entry(self, level: int, leads: int, low: int) -> int:
        if level == 1:
            frames = (*DATA_GFNS[:3], *self.world.tables[1][:2], self.world.tables[2][0], OUTSIDE >> 12, 0)
            return frames[leads] << 12 | low
        if leads == 7 and level <= 3:
            return 0x80 | low
        return self.world.tables[level - 1][leads % len(self.world.tables[level - 1])] << 12 | low & ~0x80

    def place(self, where: tuple[int, int, int]) -> tuple[int, int]:
        """Return the level of a drawn table and the gpa of one of its entries."""
        level, table, slot = where
        level = min(level, self.world.levels)
        gfn = self.world.tables[level][table % len(self.world.tables[level])]
        return level, gfn << 12 | self.world.paging.entry_bytes * self.world.paging.below[slot]

    @rule(vcpu=vcpus, where=places, leads=choices, low=bits)
    def guest_edit(self, vcpu: int, where: tuple[int, int, int], leads: int, low: int) -> None:
        level, gpa = self.place(where)
        size = self.world.paging.entry_bytes
        entry = self.entry(level, leads, low) & ((1 << 8 * size) - 1)
        self.both(ops.store(self.world.through_window(gpa), entry, size, vcpu=vcpu, ac=True))
        self.invlpg_due.append(vcpu)

    @rule(vcpu=vcpus, where=places, leads=choices, low=bits)
    def host_edit(self, vcpu: int, where: tuple[int, int, int], leads: int, low: int) -> None:
        level, gpa = self.place(where)
        entry = self.entry(level, leads, low)
        if self.world.paging.entry_bytes == 4:
            entry = entry & 0xFFFF_FFFF | entry << 32 & (1 << 64) - 1
        self.both(ops.host_store(gpa & ~7, entry, vcpu=vcpu))

    @precondition(lambda self: self.invlpg_due)
    @rule(gva=choices)
    def invlpg_after_an_edit(self, gva: int) -> None:
        self.both(ops.invlpg(self.gvas[gva], vcpu=self.invlpg_due.pop()))

    @rule(vcpu=vcpus, root=choices)
    def switch(self, vcpu: int, root: int) -> None:
        roots = self.world.tables[self.world.levels]
        self.both(ops.write_cr3(roots[root % len(roots)] << 12, vcpu=vcpu))

    @rule(vcpu=vcpus, bit=st.sampled_from([1 << 20, 1 << 21, 1 << 7]))
    def toggle_cr4(self, vcpu: int, bit: int) -> None:
        self.cr4[vcpu] ^= bit
        self.both(ops.write_cr4(self.cr4[vcpu], vcpu=vcpu))

    @rule(vcpu=vcpus, value=st.sampled_from([0x80050033, 0x80040033]))
    def set_wp(self, vcpu: int, value: int) -> None:
        self.both(ops.write_cr0(value, vcpu=vcpu))

    @rule(vcpu=vcpus, nxe=st.booleans())
    def set_nxe(self, vcpu: int, *, nxe: bool) -> None:
        self.both(ops.write_efer(self.world.paging.efer & ~0x800 | 0x800 * nxe, vcpu=vcpu))

    @rule(vcpu=vcpus, gpa=st.sampled_from([*DATA_GFNS[:2], OUTSIDE >> 12]))
    def paging_off_and_on(self, vcpu: int, gpa: int) -> None:
        self.both(ops.write_cr0(0x00050033, vcpu=vcpu, host=True))
        self.both(ops.access(gpa << 12, "write", vcpu=vcpu))
        self.both(ops.write_cr0(0x80050033, vcpu=vcpu, host=True))

    @rule(vcpu=vcpus, level=st.integers(1, 5), table=choices)
    def zap(self, vcpu: int, level: int, table: int) -> None:
        tables = self.world.tables[min(level, self.world.levels)]
        self.both(ops.zap_gfn(tables[table % len(tables)], vcpu=vcpu))

    @invariant()
    def states_events_and_audits_agree(self) -> None:
        if not self.done:
            return
        assert self.core.take_trace() == self.model.take_trace()
        assert self.core.audit() == []
        assert self.model.audit() == []
        assert self.core.state_words() == self.model.state_words()


CoreAndModel.TestCase.settings = settings(stateful_step_count=40)
TestCoreAndModel = CoreAndModel.TestCase
