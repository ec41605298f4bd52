"""An explained walk says what the machine then does, in every mode: the walk is asked about an access, and the access is made."""

from collections import Counter
from copy import deepcopy
from functools import partial

import numpy as np

from shadow_mmu.differential import ModelSubject, NativeSubject
from shadow_mmu.memory import Memory
from shadow_mmu.model import Machine
from shadow_mmu.model.access import effective_address, is_canonical
from shadow_mmu.model.permissions import Context, make_context
from shadow_mmu.model.registers import PagingMode, Registers
from shadow_mmu.model.walk import GuestWalk, walk
from shadow_mmu.ops import Op
from shadow_mmu.pagewalk import AccessAnswer, EntryKind, Verdict
from shadow_mmu.pagewalk.access import KINDS, Asked, ask
from shadow_mmu.pagewalk.guest import MODE_NAMES
from shadow_mmu.pagewalk.live import explain
from shadow_mmu.types import Memslot, OpFlag, OutcomeCode
from shadow_mmu.workloads.random import Stream, random_stream
from shadow_mmu.workloads.world import PAGINGS, MachineConfig

STREAMS, LENGTH = 3, 1200
NX = 1 << 63
NAMES = {kind: name for name, kind in KINDS.items()}
OUTCOMES = {
    "allowed": OutcomeCode.OK,
    "#PF": OutcomeCode.PAGE_FAULT,
    "#GP": OutcomeCode.GP,
    "MMIO": OutcomeCode.MMIO,
    "triple fault": OutcomeCode.TRIPLE_FAULT,
}


def streams(seed: int, length: int) -> list[Stream]:
    """Return streams that begin in each mode, some of them of a machine that pages in two dimensions or has a 32-bit host."""
    drawn = [
        random_stream(seed + number, length, paging=paging) for number in range(STREAMS) for paging in sorted(PAGINGS)
    ]
    policies = ("seed,mmu=tdp", "lru:3,mmu=tdp", "lru:3,host=pae", "lru:3,pae_roots=cached,host=pae")
    return drawn + [random_stream(seed + number, length, policy=policy) for number, policy in enumerate(policies)]


def asked_by(op: Op) -> Asked:
    flags = OpFlag(op.flags)
    return ask(NAMES[op.kind], user=OpFlag.USER in flags, ac=OpFlag.AC in flags, implicit=OpFlag.IMPLICIT in flags)


def context_of(config: MachineConfig, registers: tuple[int, int, int, int, int]) -> Context:
    return make_context(Registers(*registers), config.cpu)


def test_what_a_walk_says_of_an_access_is_what_the_core_does() -> None:
    verdicts: Counter[Verdict] = Counter()
    outcomes: Counter[str] = Counter()
    ends: dict[str, set[EntryKind]] = {}
    number = 0
    for stream in streams(7300, LENGTH):
        subject, config = NativeSubject(stream.config), stream.config
        memory = Memory(subject.vm, tuple(Memslot(*slot) for slot in config.slots))
        pages = np.array(stream.pages, np.dtype("<u8")).reshape(-1, 512)
        for op in stream.ops:
            if op.kind not in NAMES:
                subject.execute(op, pages)
                continue
            number += 1
            before = subject.state_words() if number % 50 == 0 else b""
            told = explain(
                memory, subject.vm.shadow_path, partial(context_of, config),
                op.addr, op.vcpu, asked=asked_by(op),
            )  # fmt: skip
            if before:
                assert repr(told)
                assert subject.state_words() == before, "looking changed something"
            result = subject.execute(op, pages)
            assert told.verdict is not None
            assert told.access is not None
            verdicts[told.verdict] += 1
            ends.setdefault(told.guest.mode, set()).add(told.guest.end)
            if told.verdict is Verdict.STALE or not (told.tlb is None or told.tlb.agrees):
                continue
            if result[0] == OutcomeCode.TRIPLE_FAULT and told.guest.steps[0].kind is EntryKind.ABSENT:
                continue  # E015: CR3 is outside memory, which is found when the root is loaded
            if told.access.outcome == "#PF" and told.access.reason.endswith("decide otherwise)"):
                continue  # B.5: a supervisor's write under CR0.WP=0 took U from the leaf, and SMAP does not see it
            if told.guest.end is EntryKind.RESERVED and told.guest.steps[-1].entry & NX:
                continue  # C.1: roles know no EFER.NXE, so that a page that was shadowed while it was set may serve
            assert result[0] == OUTCOMES[told.access.outcome], f"{config} {op}\n{told!r}"
            assert result[2] == (told.access.error_code or 0), f"{config} {op}\n{told!r}"
            if told.access.outcome in {"allowed", "MMIO"}:
                assert result[1] == told.guest.address
            outcomes[told.access.outcome] += 1
    assert {verdict for verdict in Verdict if not verdicts[verdict]} == set(), verdicts
    assert outcomes.keys() >= {"allowed", "#PF", "#GP", "MMIO"}
    assert ends.keys() == set(MODE_NAMES.values())
    for mode, met in ends.items():
        assert {EntryKind.PAGE} | ({EntryKind.NOT_PRESENT} if mode != "paging off" else set()) <= met, mode
    assert {EntryKind.RESERVED, EntryKind.ABSENT, EntryKind.NON_CANONICAL} <= set().union(*ends.values())


def test_what_a_walk_says_of_the_guests_tables_is_what_the_models_walk_finds() -> None:
    modes: Counter[PagingMode] = Counter()
    for stream in streams(7500, 400):
        subject, config = ModelSubject(stream.config), stream.config
        pages = np.array(stream.pages, np.dtype("<u8")).reshape(-1, 512)
        for op in stream.ops:
            if op.kind in NAMES:
                modes[check_against_the_walk(subject.machine, config, op)] += 1
            subject.execute(op, pages)
    assert set(modes) == set(PagingMode)


class HeldMemory:
    """The model's memory as a walk reads it."""

    def __init__(self, machine: Machine) -> None:
        self.memory = machine.vm.memory
        self.read = machine.memory.read

    def holds(self, gpa: int, length: int) -> bool:
        return all(self.memory.has(at >> 12) for at in range(gpa, gpa + length, 4096))

    def is_read_only(self, gpa: int) -> bool:
        return self.memory.is_read_only(gpa >> 12)


def check_against_the_walk(machine: Machine, config: MachineConfig, op: Op) -> PagingMode:
    asked, vcpu = asked_by(op), machine.vm.vcpus[op.vcpu]
    told = explain(HeldMemory(machine), machine.shadow_path, partial(context_of, config), op.addr, op.vcpu, asked=asked)
    gva = effective_address(vcpu, op.addr)
    assert told.guest.start == gva
    if not is_canonical(vcpu, gva):
        assert told.guest.end is EntryKind.NON_CANONICAL
        return vcpu.context.mode
    # A copy: the walk sets A and D.
    found = walk(deepcopy(machine.vm.memory), vcpu.context, vcpu.first_table(gva), gva, asked.access)
    answered = told.access
    assert isinstance(answered, AccessAnswer)
    if vcpu.shut_down:
        assert answered.outcome == "triple fault"
    elif isinstance(found, GuestWalk):
        assert answered.error_code is None
        assert told.guest.address == found.gfn << 12 | gva & 0xFFF
        tables = [step for step in told.guest.steps if step.name != "PDPTR"]
        assert [step.table >> 12 for step in tables] == [
            found.table_gfn[level] for level in sorted(found.table_gfn, reverse=True)
        ]
        if tables:
            assert tables[-1].level == found.level
            # The model's drops W while D is clear.
            assert not found.access & ~tables[-1].rights.access
    else:
        assert answered.error_code == found
    return vcpu.context.mode
