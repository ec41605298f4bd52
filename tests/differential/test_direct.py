"""Two-dimensional paging: core and model do the same; and the machine that shadows nothing judges the one that does."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from tests.differential.excuses import shadow_may_give_more

from shadow_mmu.differential import ModelSubject, NativeSubject, compare
from shadow_mmu.ops import Op
from shadow_mmu.types import OpFlag, OpKind, OutcomeCode
from shadow_mmu.workloads.random import Stream, random_stream
from shadow_mmu.workloads.world import PAGINGS, MachineConfig

ACCESSES = {OpKind.READ, OpKind.WRITE, OpKind.FETCH, OpKind.LOAD, OpKind.STORE}
EFER_LME = 1 << 8
SOAK_STREAMS = 2000


@pytest.mark.parametrize("paging", PAGINGS)
@pytest.mark.parametrize("policy", ["locked", "seed", "lru:0", "lru:3", "lru:3,lock=rwlock"])
def test_e044_core_and_model_agree_in_two_dimensions(policy: str, paging: str) -> None:
    for seed in range(2):
        stream = random_stream(seed, 800, policy=f"{policy},mmu=tdp", vcpus=3, paging=paging)
        found = compare(stream, NativeSubject, ModelSubject, audit_every=200, oracle=True)
        assert found is None, str(found)


def test_e044_streams_meet_every_exit_and_none_that_only_shadow_tables_have() -> None:
    totals: dict[str, int] = {}
    emulated = {False: 0, True: 0}
    for seed in range(12):
        stream = random_stream(seed, 2000, policy="lru:3,mmu=tdp")
        subject = NativeSubject(stream.config)
        pages = np.array(stream.pages, "<u8").reshape(-1, 512)
        for op in stream.ops:
            subject.execute(op, pages)
        counters = subject.vm.stats()["counters"]
        for name, count in counters.items():
            totals[name] = totals.get(name, 0) + count
        emulated[any(read_only for *_, read_only in stream.config.slots)] += counters["pf_emulate"]
    counted = {name for name, count in totals.items() if count}
    assert counted == {
        *("pf_taken", "pf_fixed", "pf_guest", "mmio_exits", "pf_emulate"),
        *("tlb_flush", "invlpg", "remote_tlb_flush_requests", "mmu_cache_miss"),
    }
    # What is emulated is a walk through tables in read-only memory (E107).
    assert emulated[True] > 0 == emulated[False]


class Registers:
    """CR0, CR4 and EFER of each vCPU as the writes that succeeded left them, to know what shadow entries cannot express."""

    def __init__(self, config: MachineConfig) -> None:
        self.cpu = config.cpu
        self.values = [
            {OpKind.WRITE_CR0: 0x80050033, OpKind.WRITE_CR4: 0x20, OpKind.WRITE_EFER: 0xD00}
            for _ in range(config.vcpus)
        ]

    def observe(self, op: Op) -> None:
        """Take note of a write that succeeded."""
        kind = OpKind(op.kind)
        if kind in self.values[op.vcpu]:
            self.values[op.vcpu][kind] = op.addr

    def shadow_may_differ(self, vcpu: int, by_tables: object) -> bool:
        """Whether shadow entries may give rights that the guest's do not; ``by_tables`` is the outcome that these give."""
        cr0, cr4, efer = self.values[vcpu].values()
        error = by_tables[2] if isinstance(by_tables, tuple) and by_tables[0] == OutcomeCode.PAGE_FAULT else 0
        # A write of EFER says LME; in these guests, whose paging is on, that is LMA.
        return shadow_may_give_more(self.cpu, cr0, cr4, efer | (efer & EFER_LME) << 2, error)


def judged(stream: Stream) -> Iterator[tuple[int, Op, object, object, bool]]:
    """Run a stream on shadow tables and in two dimensions, each access right after its own INVLPG.

    Yields each operation with both outcomes and whether they may differ, and ends after a triple fault, which is a matter of
    shadow roots.
    """
    config = replace(stream.config, tlb_entries=0)
    shadow = NativeSubject(config)
    direct = NativeSubject(replace(config, policy=f"{config.policy},mmu=tdp"))
    registers = Registers(config)
    pages = np.array(stream.pages, "<u8").reshape(-1, 512)
    for index, op in enumerate(stream.ops):
        if op.kind in ACCESSES:
            for subject in (shadow, direct):
                subject.execute(Op(OpKind.INVLPG, vcpu=op.vcpu, addr=op.addr), pages)
        one, two = shadow.execute(op, pages), direct.execute(op, pages)
        if isinstance(one, tuple) and one[0] == OutcomeCode.TRIPLE_FAULT:
            return
        may_differ = op.kind in ACCESSES and registers.shadow_may_differ(op.vcpu, two)
        yield index, op, one, two, may_differ
        if isinstance(one, tuple) and one[0] == OutcomeCode.OK:
            registers.observe(op)
        if may_differ and one != two:
            return  # memory may differ from here on
    assert shadow.audit() == direct.audit() == []
    for gpa, length, _ in config.slots:
        assert memory(shadow, gpa, length) == memory(direct, gpa, length), "memory, A and D bits included"


def memory(subject: NativeSubject, gpa: int, length: int) -> bytes:
    """Return what a memslot holds."""
    held: bytes = subject.vm.memory_read(gpa, length)
    return held


def agree(streams: Iterator[Stream]) -> tuple[int, int]:
    """Compare every outcome; return how many accesses were compared, and how many of them did what the role cannot express."""
    compared = excused = 0
    for number, stream in enumerate(streams):
        for index, op, one, two, may_differ in judged(stream):
            compared += op.kind in ACCESSES
            if one != two:
                assert may_differ, (
                    f"stream {number}, operation {index}, {op!r}: {one} shadowed, {two} in two dimensions"
                )
                excused += 1
    return compared, excused


@pytest.mark.parametrize("paging", PAGINGS)
@pytest.mark.parametrize("policy", ["seed", "lru:3"])
def test_e044_shadow_tables_translate_as_the_guests_own_do(policy: str, paging: str) -> None:
    streams = (random_stream(seed, 700, policy=policy, vcpus=2, paging=paging) for seed in range(12))
    compared, excused = agree(streams)
    assert compared > 3000
    assert excused < compared // 500


@pytest.mark.soak
@pytest.mark.parametrize("paging", PAGINGS)
def test_e044_shadow_tables_translate_as_the_guests_own_do_in_many_streams(paging: str) -> None:
    compared, _ = agree(
        random_stream(seed, 700, policy="lru:3", vcpus=2, paging=paging) for seed in range(SOAK_STREAMS)
    )
    assert compared > 500 * SOAK_STREAMS // 2


def test_a_wrong_right_in_a_shadow_entry_would_be_seen() -> None:
    """The comparison has teeth: a guest that owes the INVLPG sees its old translation on one machine only."""
    differing = 0
    for seed in range(4):
        stream = random_stream(seed, 1000, policy="lru:3", vcpus=2, paging="4-level")
        config = replace(stream.config, tlb_entries=1536)
        pages = np.array(stream.pages, "<u8").reshape(-1, 512)
        shadow, direct = NativeSubject(config), NativeSubject(replace(config, policy="lru:3,mmu=tdp", tlb_entries=0))
        ops = [op for op in stream.ops if op.flags != OpFlag.HOST]
        differing += sum(shadow.execute(op, pages) != direct.execute(op, pages) for op in ops)
    assert differing
